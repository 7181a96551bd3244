"""The numbers that the authors' implementation gives, recorded: every case, every step, with both attention implementations."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from deltamem.convert import from_reference

FOLDER = Path(__file__).parents[1] / "reference_vectors"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


def under(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def adapted(case, tensors, attention):
    config = AutoConfig.for_model(**case["base_model"]["config"])
    backbone = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    backbone.load_state_dict(under(tensors, "base."))
    ours, state_dict = from_reference(case["delta_mem_config"], under(tensors, "adapter."))
    model = get_peft_model(backbone, ours)
    set_peft_model_state_dict(model, state_dict)
    return model.eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_states_are_those_of_the_reference(name, attention):
    case, tensors = json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")
    model = adapted(case, tensors, attention)
    state = model.new_memory(len(tensors["step0.input_ids"]))
    cache, mask = None, None
    for index, step in enumerate(case["steps"]):
        given = under(tensors, f"step{index}.")
        if step["new_context"]:
            cache, mask = None, None
        new = given["attention_mask"]
        mask = new if mask is None else torch.cat([mask, new], dim=1)
        with model.memory(state, write=step["write"], segment_ids=given.get("segment_ids")):
            output = model(input_ids=given["input_ids"], attention_mask=mask, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        real = new.bool()
        torch.testing.assert_close(output.logits[real], given["logits"][real], atol=1e-5, rtol=0)
        for module, expected in under(given, "state.").items():
            torch.testing.assert_close(state.tensors[module].view_as(expected), expected, atol=1e-5, rtol=0)

"""A backbone made without weights, on the meta device, and given them later."""

import itertools

import pytest
import torch
from accelerate import init_empty_weights
from backbone_checks import check_generation, check_passes, check_same
from nightly import by_day
from oracle import adapted
from peft import (
    PeftModel,
    get_peft_model,
)
from tiny import FAMILIES, random_tokens, tiny_adapted, tiny_backbone, tiny_config

from deltamem import DeltaMemConfig


@pytest.mark.parametrize(
    ("model_type", "init"),
    by_day(
        [("llama", "random"), *((family, "base_slice") for family in FAMILIES)],
        [*itertools.product(FAMILIES, ["base_slice", "random"])],
    ),
)
def test_made_without_weights(model_type, init):
    """What an adapter would cost is counted without a number being computed; later the model comes to be."""
    expected = adapted(model_type, config=tiny_config(init=init))
    with torch.device("meta"):
        model = tiny_adapted(tiny_config(init=init), model_type=model_type, attn="eager")
    assert model.get_nb_trainable_parameters() == expected.get_nb_trainable_parameters()
    tensors = [*model.parameters(), *model.buffers(), *model.new_memory(2).tensors.values()]
    with torch.no_grad(), model.memory(model.new_memory(2), write=False):
        tensors.append(model(input_ids=random_tokens(2, 8).to("meta")).logits)
    assert all(tensor.is_meta for tensor in tensors)

    model.to_empty(device="cpu")
    for name, buffer in expected.named_buffers():  # the tables of positions, which no file has
        model.get_buffer(name).copy_(buffer)
    model.load_state_dict(expected.state_dict())
    check_same(model, expected)
    check_passes(model)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_weights_assigned_to_a_model_made_without(model_type, tmp_path):
    """Assigned weights are other parameters than those that the layer was made with."""
    expected = adapted(model_type)
    expected.save_pretrained(tmp_path)
    with init_empty_weights():
        backbone = tiny_backbone(model_type, "eager")
    model = PeftModel.from_pretrained(backbone, tmp_path, low_cpu_mem_usage=True)
    model.load_state_dict(expected.state_dict(), assign=True)
    check_same(model, expected)
    check_generation(model)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_loading_with_little_memory(model_type, tmp_path):
    expected = adapted(model_type)
    expected.save_pretrained(tmp_path)
    check_same(PeftModel.from_pretrained(tiny_backbone(model_type, "eager"), tmp_path, low_cpu_mem_usage=True), expected)


def test_an_adapter_on_a_backbone_without_weights():
    """The adapter itself is made with weights, which follow the backbone; there are no columns to take a slice of."""
    with torch.device("meta"):
        backbone = tiny_backbone()
    assert all(parameter.is_meta for parameter in get_peft_model(backbone, DeltaMemConfig()).parameters())

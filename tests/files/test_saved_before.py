"""Adapters and memories that an earlier version saved load with the same results.

`saved_before/` was written by the version in which a memory was a tensor for each layer: two tiny adapters, a memory of each
(one with an open segment), and the logits of six tokens that read it.
"""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import tiny_backbone

from deltamem import DeltaMemState

SAVED = Path(__file__).parent / "saved_before"


@pytest.mark.parametrize("name", ["learned_decay", "segments"])
@torch.no_grad()
def test_they_give_the_same_results(name: str, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(tiny_backbone(), SAVED / name).eval()
    state = DeltaMemState.load(SAVED / name / "memory.safetensors")
    expected = load_file(SAVED / name / "expected.safetensors")
    assert (state.snapshot.open_segment is not None) == (name == "segments")
    with model.memory(state, write=False):  # by its fingerprint, this adapter's
        logits = model(input_ids=expected["ids"], use_cache=False).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-6, rtol=0)
    assert not torch.allclose(model(input_ids=expected["ids"]).logits, expected["logits"], atol=1e-4)  # the control: no memory
    state.save(tmp_path / "again.safetensors")
    before, again = (load_file(path) for path in (SAVED / name / "memory.safetensors", tmp_path / "again.safetensors"))
    assert before.keys() == again.keys()
    assert all(torch.equal(before[key], again[key]) for key in before)

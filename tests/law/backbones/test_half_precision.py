"""A backbone in half precision: the memory and the adapter stay in float32."""

import pytest
import torch
from backbone_checks import ROWS, check_generation, check_passes, check_same, tolerance_for
from oracle import adapted, error, replay, told
from peft import (
    PeftModel,
)
from tiny import FAMILIES, random_tokens, tiny_backbone

HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_half_precision(model_type, dtype):
    model = adapted(model_type, "sdpa", dtype=dtype)
    check_passes(model, tolerance_for(dtype))
    check_generation(model, tolerance_for(dtype))
    state = replay(model, ROWS[1])  # float32 in more than name: it holds what the model's dtype cannot
    assert all(not torch.equal(tensor, tensor.to(dtype).float()) for tensor in state.tensors.values())


@pytest.mark.parametrize("dtype", HALF)
def test_a_cast_of_the_model_between_two_passes(dtype):
    """A memory that is taken for a buffer of the model would be rounded with it, or begun anew."""
    model, stayed, more = adapted(), adapted(), random_tokens(1, 2, seed=2)
    state = replay(model, ROWS[0])
    before = state.clone()
    model.to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.no_grad(), model.memory(state, write=False):
        model(input_ids=more)
    assert error(state, before) == 0
    with torch.no_grad(), model.memory(state):
        model(input_ids=more)
    assert state.tokens == [len(ROWS[0]) + 2]
    assert all(tensor.dtype == torch.float32 for tensor in state.tensors.values())
    assert error(state, replay(stayed, more[0], before)) <= tolerance_for(dtype)
    assert error(state, replay(stayed, more[0])) > 4 * tolerance_for(dtype)  # the control: a memory begun anew


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False}], ids=str)
@pytest.mark.parametrize("dtype", HALF)
def test_an_adapter_is_not_rounded_when_it_is_loaded(dtype, options, tmp_path):
    """It would be another adapter then, which refuses the memories of the one that was saved."""
    model = adapted(dtype=dtype)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_backbone(attn="eager", dtype=dtype), tmp_path, **options)
    check_same(loaded, model)
    with torch.no_grad(), loaded.memory(told(model)):
        loaded(input_ids=ROWS[0][None])

"""Mixed precision: the backbone computes in half precision, the memory does not."""

import pytest
import torch
from tiny import random_tokens, tiny_adapted, tiny_config

from deltamem.rule import backends

FIRST = "model.layers.0.self_attn"


@pytest.mark.parametrize("backend", ["auto", "chunked"])
@pytest.mark.parametrize("options", [{}, {"num_states": 2, "decay": "learned"}, {"write": "message"}], ids=str)
def test_states_and_gates_are_not_rounded(monkeypatch, backend, options):
    if backend == "chunked":
        monkeypatch.setattr(backends, "importable", lambda name: False)
    model, ids = tiny_adapted(tiny_config(**options)), random_tokens(1, 20)
    segments = torch.zeros_like(ids) if "write" in options else None
    states = [model.new_memory() for _ in range(2)]
    for state, enabled in zip(states, (False, True), strict=True):
        for _ in range(2):  # the second pass starts from what the first wrote
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled), model.memory(state, segment_ids=segments):
                model(input_ids=ids, use_cache=False)
    # What enters the first layer is the same with and without autocast, so its memory must be, too.
    torch.testing.assert_close(states[1].tensors[FIRST], states[0].tensors[FIRST], atol=1e-6, rtol=0)
    assert all(tensor.dtype == torch.float32 for tensor in states[1].tensors.values())

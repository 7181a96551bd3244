"""Whatever torch's default dtype is, a memory and its rule compute in float32: the same bits as under a float32 default."""

import contextlib

import pytest
import torch
from oracle import GREEDY, adapted
from tiny import random_tokens, tiny_config
from transformers import DynamicCache

from deltamem.rule import delta_rule
from deltamem.rule.cpu import rule as cpu_rule

IDS = random_tokens(1, 40)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def read_and_write(model):
    state, cache = model.new_memory(), DynamicCache()
    with torch.no_grad(), model.memory(state):
        logits = [model(input_ids=part, past_key_values=cache).logits for part in IDS.split([36, 1, 1, 2], dim=1)]
    cache.crop(-3)
    return [*state.tensors.values(), *logits]


def write_segments(model):
    state, ids = model.new_memory(), torch.arange(40)[None] // 7
    with torch.no_grad(), model.memory(state, segment_ids=ids, keep_open=True):
        model(input_ids=IDS)
    return [*state.tensors.values(), *state.snapshot.open_segment.sums.values()]


def generate(model):
    state = model.new_memory()
    with model.memory(state):
        tokens = model.generate(input_ids=IDS, **GREEDY)
    return [tokens, *state.tensors.values()]


def learn(model):
    state = model.new_memory()
    with model.memory(state, detach=False):
        model(input_ids=IDS, use_cache=False)
    with model.memory(state, write=False):
        model(input_ids=IDS, use_cache=False, labels=IDS).loss.backward()
    return [weight.grad for name, weight in model.named_parameters() if weight.requires_grad]


def attach(model):
    other = adapted()
    return [weight for name, weight in other.named_parameters() if ".delta_mem_" in name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("use", "options"),
    [
        (read_and_write, {}),
        (read_and_write, {"num_states": 2, "decay": "learned"}),
        (write_segments, {"write": "message"}),
        (generate, {}),
        (learn, {}),
        (attach, {}),
    ],
)
def test_the_same_bits_under_every_default(dtype, use, options):
    expected = use(adapted(config=tiny_config(**options)))
    model = adapted(config=tiny_config(**options))
    with default_dtype(dtype):
        given = use(model)
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))
    assert all(one.dtype == other.dtype for one, other in zip(given, expected, strict=True))


def test_a_buffer_without_a_dtype_would_be_too_small(monkeypatch):
    pytest.importorskip("numba")
    asked = []
    monkeypatch.setattr(cpu_rule, "run", lambda *arguments: None)  # what compiled code does with it is not for a test
    monkeypatch.setattr(cpu_rule, "chunk_starts", lambda *size: asked.append(torch.empty(*size)) or asked[-1])
    inputs = [torch.rand(1, 1, 40, 4, requires_grad=True) for _ in range(6)]
    with default_dtype(torch.bfloat16):
        delta_rule(*inputs, backend="compiled")
    assert asked[0].dtype == torch.bfloat16

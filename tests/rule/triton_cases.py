"""Tests of the Triton kernels: on a GPU, or in a process in which Triton interprets them. `test_triton.py` starts it."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from nightly import by_day
from oracle import adapted, decode_steps_taken, error, told
from tiny import FAMILIES, random_tokens, tiny_backbone, tiny_config

from deltamem.forward import call as carrier
from deltamem.forward import decode as one_token
from deltamem.rule import Gating, delta_memory, delta_rule
from deltamem.rule.gpu import rule
from deltamem.rule.reference import reference_delta_rule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def to_device(tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


# By day, less than a chunk, and two chunks with a part of a third, of several rows and heads, each of them in several parts.
SIZES = [(1, 1, 1, 8), (2, 2, 1, 3), (3, 1, 1, 1), (4, 1, 2, 4), (9, 2, 1, 5), (5, 1, 1, 33)]


@pytest.mark.parametrize(("tokens", "batch", "heads", "r"), by_day([(1, 1, 1, 8), (3, 1, 1, 1), (9, 1, 2, 5)], SIZES))
def test_the_rule_equals_the_loop_with_every_gradient(monkeypatch, tokens, batch, heads, r):
    monkeypatch.setattr(rule, "CHUNK", 4)  # the interpreter takes its time
    monkeypatch.setattr(rule, "_HELD_NUMBERS", 128)  # so that a chunk is gone back through in parts
    generator = torch.Generator().manual_seed(tokens)
    q, k, v, *gates = (torch.randn(batch, heads, tokens, r, generator=generator) for _ in range(6))
    gates = [gate.sigmoid() for gate in gates]
    gates[0][:, :, ::3] = 0.0
    state = torch.randn(batch, heads, r, r, generator=generator)
    results = []
    for function, dtype in ((partial(delta_rule, backend="triton"), torch.float32), (reference_delta_rule, torch.float64)):
        inputs = (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, *gates, state)
        leaves = [x.to(DEVICE, dtype).requires_grad_() for x in inputs]
        outputs = function(*leaves)
        weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(DEVICE, dtype) for x in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, weights)])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm().clamp(min=1e-6)


def gated_inputs(gating, tokens):
    generator = torch.Generator().manual_seed(1)
    rows = gating.query_rows + gating.write_rows
    shapes = (2, tokens, rows), (gating.bias_rows,), (2, gating.num_states, gating.r, gating.r)
    return to_device(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize(
    "gating", [Gating(8), Gating(5, 2, "learned", True, False), Gating(1, 3, "none"), Gating(4, 2, "coupled", True)], ids=str
)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_a_decoding_step_equals_the_definition(gating, scale):
    projected, bias, state = gated_inputs(gating, 1)
    inputs = (projected * scale, bias, state, None, gating)
    for got, expected in zip(delta_memory(*inputs, "triton"), delta_memory(*inputs, "reference"), strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_projections_of_a_masked_sequence_equal_the_definition(monkeypatch):
    monkeypatch.setattr(rule, "CHUNK", 4)
    gating = Gating(4, 2)
    mask = torch.tensor([[False, True, True, False, True], [True, True, True, True, False]], device=DEVICE)
    projected, bias, state = gated_inputs(gating, 5)
    projected[~mask] = float("nan")
    inputs = (projected, bias, state, mask, gating)
    for got, expected in zip(delta_memory(*inputs, "triton"), delta_memory(*inputs, "reference"), strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("gating", [Gating(8), Gating(5, 2, "learned", True, False)], ids=str)
def test_a_masked_step_leaves_the_memory_and_reads_nothing(gating):
    projected, bias, state = gated_inputs(gating, 1)
    projected[0] = float("nan")
    inputs = (projected, bias, state, torch.tensor([[False], [True]], device=DEVICE), gating)
    for got, expected in zip(delta_memory(*inputs, "triton"), delta_memory(*inputs, "reference"), strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_a_nan_is_not_lost():
    gating = Gating(4, decay="learned")
    for place in (4, 8, 12, 16):
        projected, bias, state = gated_inputs(gating, 1)
        projected[0, 0, place] = float("nan")
        end = delta_memory(projected, bias, state, None, gating, "triton").state
        assert end[0].isnan().any()
        assert end[1].isfinite().all()


@pytest.fixture
def taken(monkeypatch):
    """What took a layer's only token in a launch, pass by pass; here as on a GPU."""
    monkeypatch.setattr(one_token, "choose", lambda *_: "triton")
    return decode_steps_taken(monkeypatch)


@torch.no_grad()
def decoded(model, state, write=True, mask=None):
    """Logits of three tokens, a pass each, and the memory after them; the mask covers the rows' first tokens."""
    state, cache, logits = state.clone(), None, []
    for step, token in enumerate(random_tokens(3, len(state), seed=5).to(DEVICE), 1):
        masked = {} if mask is None else {"attention_mask": mask[:, :step]}
        with model.memory(state, write=write):
            output = model(input_ids=token[:, None], past_key_values=cache, use_cache=True, **masked)
        cache = output.past_key_values
        logits.append(output.logits if mask is None else output.logits[mask[:, step - 1].bool()])
    return torch.cat(logits), state


def assert_same_both_ways(monkeypatch, taken, model, rows=1, tolerance=1e-5, **options):
    start = told(model, rows)
    model.to(DEVICE)

    def run():
        return decoded(model, start, **options)

    logits, memory = run()
    assert [len(token.reached) for token in taken] == [2, 2, 2]
    assert all(type(token).__name__ == "GpuDecodeStep" for token in taken)
    monkeypatch.setattr(carrier, "_decode_step", lambda *_: None)
    expected, same_memory = run()
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
    assert error(memory, same_memory) < tolerance


# By day, what differs for one token: plain projections, and those packed in one piece or head by head.
BY_DAY = [("llama", False), ("phi3", True), ("gpt_neox", True)]


@pytest.mark.parametrize(("model_type", "write"), by_day(BY_DAY, [*itertools.product(FAMILIES, [True, False])]))
def test_a_token_in_every_kind_of_attention(monkeypatch, taken, model_type, write):
    assert_same_both_ways(monkeypatch, taken, adapted(model_type), rows=2, write=write)


@pytest.mark.parametrize(
    "options",
    [
        {"num_states": 3, "decay": "learned", "decay_first": True},
        {"rowwise_gates": False, "decay": "none"},
        {"corrections": ("q", "k", "v", "o"), "r": 5},
    ],
    ids=str,
)
def test_a_token_with_every_kind_of_memory(monkeypatch, taken, options):
    model = adapted(config=tiny_config(**options), hidden_size=36)  # no power of two
    assert_same_both_ways(monkeypatch, taken, model)


def test_a_token_in_half_precision(monkeypatch, taken):
    model = adapted(backbone=tiny_backbone(dtype=torch.bfloat16))
    assert_same_both_ways(monkeypatch, taken, model, rows=3, tolerance=0.02)


def test_a_token_that_is_padding(monkeypatch, taken):
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]], device=DEVICE)
    assert_same_both_ways(monkeypatch, taken, adapted(), rows=2, mask=mask)

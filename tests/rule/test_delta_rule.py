"""The delta rule's backends against its definition: outputs, states, gradients, masks, numerics and errors."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.rule import delta_rule, read
from deltamem.rule.chunked import CHUNK
from deltamem.rule.reference import reference_delta_rule

BACKENDS = ("reference", "chunked", "compiled")
FAST = BACKENDS[1:]
LENGTHS = (1, 2, 5, 16, 31, 32, 33, 64, 65, 97)
NAMES = ("q", "k", "v", "keep", "erase", "write", "state")


def make_inputs(tokens: int, batch: int = 2, heads: int = 3, r: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Independent gates for everything, so that no mix-up of keep, erase and write goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, keep, erase, write = (torch.randn(batch, heads, tokens, r, generator=generator) for _ in range(6))
    state = torch.randn(batch, heads, r, r, generator=generator)
    gates = {"keep": keep.sigmoid(), "erase": erase.sigmoid(), "write": write.sigmoid()}
    return {"q": F.normalize(q, dim=-1), "k": F.normalize(k, dim=-1), "v": v, **gates, "state": state}


def with_gradients(
    inputs: dict[str, Tensor], rule: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Reads, final state, and the gradients of a loss in which every number of both has a weight of its own."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    reads, state = rule(**leaves)
    generator = torch.Generator().manual_seed(99)
    weigh = (torch.randn(out.shape, generator=generator) * out for out in (reads, state))
    sum(out.sum() for out in weigh).backward()  # type: ignore[union-attr]
    return reads.detach(), state.detach(), {name: leaf.grad for name, leaf in leaves.items()}  # type: ignore[misc]


def assert_near(got: Tensor, expected: Tensor, name: str, bound: float = 1e-5) -> None:
    error = (got - expected).norm() / expected.norm().clamp(min=1e-6)
    assert error <= bound, f"{name}: relative error {error:.1e}"


# Every backend against the definition in float64


def assert_equals_the_loop(inputs: dict[str, Tensor], backend: str) -> None:
    reads, state, gradients = with_gradients(inputs, partial(delta_rule, backend=backend))
    doubles = {name: tensor.double() for name, tensor in inputs.items()}
    expected_reads, expected_state, expected_gradients = with_gradients(doubles, reference_delta_rule)
    assert_near(reads, expected_reads, "reads")
    assert_near(state, expected_state, "state")
    for name in NAMES:
        assert_near(gradients[name], expected_gradients[name], f"gradient of {name}")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("zero_keep", [(), (0,), (-1,), "third"], ids=["open", "first", "last", "every third"])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_it_equals_the_loop_with_every_gradient(tokens: int, zero_keep: Any, backend: str) -> None:
    inputs = make_inputs(tokens, seed=tokens)
    inputs["keep"][:, :, slice(None, None, 3) if zero_keep == "third" else list(zero_keep)] = 0.0
    assert_equals_the_loop(inputs, backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("batch", "heads", "r"), [(1, 1, 8), (3, 2, 1), (1, 4, 7), (2, 1, 16), (1, 1, 33)])
def test_it_equals_the_loop_at_every_size(batch: int, heads: int, r: int, backend: str) -> None:
    assert_equals_the_loop(make_inputs(257 if r == 8 else 70, batch, heads, r), backend)


@pytest.mark.parametrize("backend", FAST)
def test_it_equals_the_loop_whatever_the_layout_of_its_inputs(backend: str) -> None:
    inputs = make_inputs(40)
    inputs = {name: tensor.transpose(0, -1).contiguous().transpose(0, -1) for name, tensor in inputs.items()}
    assert not inputs["q"].is_contiguous()
    reads, state, _ = with_gradients(inputs, partial(delta_rule, backend=backend))
    for got, expected in zip((reads, state), delta_rule(**inputs, backend="reference"), strict=True):
        assert_near(got, expected, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["k", "v", "keep", "erase", "write", "state"])
def test_a_nan_in_a_token_that_counts_reaches_the_state_and_its_head_alone(name: str, backend: str) -> None:
    inputs = make_inputs(40)
    inputs[name][0, 0] = inputs[name][0, 0].index_fill(0, torch.tensor(2), math.nan)
    reads, state = delta_rule(**inputs, backend=backend)
    assert state[0, 0].isnan().any()
    assert reads[0, 0, -1].isnan().any()
    assert state[0, 1:].isfinite().all()
    assert state[1].isfinite().all()


def test_the_comparison_sees_a_gate_that_is_off_by_a_thousandth() -> None:
    inputs = make_inputs(33)
    _, state = delta_rule(**inputs, backend="chunked")
    for name in ("keep", "erase", "write"):
        _, other = delta_rule(**{**inputs, name: inputs[name] * 0.999}, backend="reference")
        with pytest.raises(AssertionError, match="relative error"):
            assert_near(state, other, "state")


def test_without_a_state_it_starts_from_zero_and_auto_is_a_backend() -> None:
    inputs = make_inputs(40)
    zero = torch.zeros_like(inputs.pop("state"))
    expected = delta_rule(**inputs, state=zero, backend="reference")
    for backend in (*BACKENDS, "auto"):
        for got, wanted in zip(delta_rule(**inputs, backend=backend), expected, strict=True):
            assert_near(got, wanted, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_callers_state_is_not_changed(backend: str) -> None:
    inputs = make_inputs(40)
    before = inputs["state"].clone()
    delta_rule(**inputs, backend=backend)
    assert torch.equal(inputs["state"], before)


# Masks


def random_mask(tokens: int, batch: int = 2) -> Tensor:
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(tokens)) < 0.6
    mask[0, 0] = False  # left padding in one row, right padding in the other
    mask[1, -1] = False
    return mask


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_masked_tokens_read_zero_and_are_as_if_absent_even_as_nan(tokens: int, backend: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(tokens)
    mask = random_mask(tokens)
    spoiled = {
        name: tensor if name == "state" else torch.where(mask[:, None, :, None], tensor, math.nan)
        for name, tensor in inputs.items()
    }
    reads, state, gradients = with_gradients(spoiled, partial(delta_rule, mask=mask.to(dtype), backend=backend))
    for name, tensor in {"reads": reads, "state": state, **gradients}.items():
        assert tensor.isfinite().all(), name
    assert not reads.transpose(1, 2)[~mask].any()
    for name in NAMES[:-1]:
        assert not gradients[name].transpose(1, 2)[~mask].any(), name
    for row in range(2):
        part = {n: x[row : row + 1] if n == "state" else x[row : row + 1, :, mask[row]] for n, x in inputs.items()}
        expected_reads, expected_state = delta_rule(**part, backend=backend)
        assert_near(reads[row, :, mask[row]], expected_reads[0], "reads")
        if backend == "reference":
            assert torch.equal(state[row], expected_state[0])
        assert_near(state[row], expected_state[0], "state", 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, CHUNK, CHUNK + 1])
def test_a_fully_masked_pass_leaves_the_state_bit_for_bit(tokens: int, backend: str) -> None:
    inputs = make_inputs(tokens)
    reads, state = delta_rule(**inputs, mask=torch.zeros(2, tokens, dtype=torch.bool), backend=backend)
    assert torch.equal(state, inputs["state"])
    assert not reads.any()


def test_read_masks_as_the_rule_does() -> None:
    inputs = make_inputs(9)
    mask = random_mask(9)
    q = torch.where(mask[:, None, :, None], inputs["q"], math.nan)
    reads = read(q, inputs["state"], mask)
    assert not reads.transpose(1, 2)[~mask].any()
    assert_near(reads, read(inputs["q"], inputs["state"]) * mask[:, None, :, None], "reads")


# Dtypes and empty passes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in make_inputs(40).items()}
    got = delta_rule(**halves, backend=backend)
    expected = delta_rule(**{name: tensor.float() for name, tensor in halves.items()}, backend=backend)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    assert read(halves["q"], halves["state"]).dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_no_tokens_read_nothing_and_keep_the_state(backend: str, masked: bool) -> None:
    inputs = make_inputs(0)
    reads, state = delta_rule(**inputs, mask=torch.ones(2, 0) if masked else None, backend=backend)
    assert reads.shape == (2, 3, 0, 4)
    assert torch.equal(state, inputs["state"])


# Long runs


def exact_loop(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    """The rule in float64, written a second time: [batch, tokens, r] each."""
    q, k, v, keep, erase, write = (x.double() for x in (q, k, v, keep, erase, write))
    state = torch.zeros(q.shape[0], q.shape[2], q.shape[2], dtype=torch.float64)
    reads = torch.empty_like(q)
    for t in range(q.shape[1]):
        reads[:, t] = torch.einsum("bij,bj->bi", state, q[:, t])
        change = write[:, t] * v[:, t] - erase[:, t] * torch.einsum("bij,bj->bi", state, k[:, t])
        state = keep[:, t, :, None] * state + change[:, :, None] * k[:, t, None, :]
    return reads, state


@pytest.mark.parametrize("decay", ["coupled", "none"])
def test_4096_tokens_stay_exact_at_every_horizon(decay: str) -> None:
    betas = torch.tensor([0.18, 0.02, 0.002, 0.0005])
    inputs = make_inputs(4096, batch=len(betas), heads=1, r=8)
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    beta = betas[:, None, None, None].expand_as(v)
    keep = 1 - beta if decay == "coupled" else torch.ones_like(beta)
    expected_reads, expected_state = exact_loop(*(x[:, 0] for x in (q, k, v, keep, beta, beta)))
    for backend in BACKENDS:
        reads, state = delta_rule(q, k, v, keep, beta, beta, backend=backend)
        for row, value in enumerate(betas.tolist()):
            assert_near(reads[row, 0].double(), expected_reads[row], f"{backend} reads, beta {value}", 1e-3)
            assert_near(state[row, 0].double(), expected_state[row], f"{backend} state, beta {value}", 1e-3)


# Errors

WRONG_SHAPES: dict[str, tuple[int, ...]] = {
    "q": (3, 5, 4),
    "k": (2, 3, 5, 3),
    "v": (2, 1, 5, 4),
    "keep": (2, 3, 5, 1),
    "erase": (2, 3, 4, 4),
    "write": (1, 3, 5, 4),
    "state": (2, 3, 4, 5),
    "mask": (1, 5),
}


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_a_wrong_shape_is_refused_by_name_even_where_it_would_broadcast(name: str) -> None:
    inputs = {**make_inputs(5), "mask": torch.ones(2, 5), name: torch.ones(WRONG_SHAPES[name])}
    with pytest.raises(ValueError, match=f"^{name} must .*{str(WRONG_SHAPES[name]).replace('(', '.').replace(')', '.')}"):
        delta_rule(**inputs)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'cuda'.*'auto'.*chunked.*reference"):
        delta_rule(**make_inputs(5), backend="cuda")

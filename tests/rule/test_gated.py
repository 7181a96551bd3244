"""From projections to reads: every backend against the method's formulas, written a second time as a loop in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deltamem.rule import DeltaKind, Gating, delta_memory, delta_memory_read, delta_memory_write
from deltamem.rule.delta_memory import Passed

BACKENDS = ("reference", "chunked", "compiled")
VARIANTS = [
    Gating(r, states, decay, decay_first, rowwise)
    for r, states in ((4, 2), (9, 1))
    for decay in ("coupled", "learned", "none")
    for decay_first in (False, True)
    for rowwise in (True, False)
    if not (decay == "none" and decay_first)
]


def make_inputs(gating: Gating, tokens: int, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """projected, gate_bias and state."""
    generator = torch.Generator().manual_seed(seed)
    rows = gating.query_rows + gating.write_rows
    shapes = (batch, tokens, rows), (gating.bias_rows,), (batch, gating.num_states, gating.r, gating.r)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]


def by_hand(projected: Tensor, gate_bias: Tensor, state: Tensor, mask: Tensor | None, gating: Gating) -> Passed:
    """One number of the method after the other, in float64."""
    projected, gate_bias, state = projected.double(), gate_bias.double(), state.double()
    batch, tokens, _ = projected.shape
    states, r, gates = gating.num_states, gating.r, gating.gate_rows
    reads, ends, opened = [], [], []
    for row in range(batch):
        for n in range(states):
            s, total = state[row, n], torch.zeros((), dtype=torch.float64)
            for t in range(tokens):
                if mask is not None and not mask[row, t]:
                    reads.append(torch.zeros(r, dtype=torch.float64))
                    continue
                q, k, v = (projected[row, t, (part * states + n) * r :][:r] for part in range(3))
                q, k = (x.tanh() / x.tanh().norm().clamp(min=1e-6) for x in (q, k))
                logits = projected[row, t, 3 * states * r :] + gate_bias
                beta, learned = (logits[(kind * states + n) * gates :][:gates].sigmoid() for kind in range(2))
                keep = {"coupled": 1 - beta, "learned": learned, "none": torch.ones_like(beta)}[gating.decay]
                erase = keep * beta if gating.decay_first else beta
                reads.append(s @ q)
                s = keep[:, None] * s + (beta * v - erase * (s @ k))[:, None] * k
                total = total + beta.mean()
            ends.append(s)
            opened.append(total)
    seen = torch.stack(reads).view(batch, states, tokens, r).transpose(1, 2).reshape(batch, tokens, states * r)
    return Passed(seen, torch.stack(ends).view_as(state), torch.stack(opened).view(batch, states))


def with_gradients(function: Any, inputs: tuple[Tensor, ...], *others: Any) -> list[Tensor]:
    """Outputs and gradients of a loss in which every number of the outputs has a weight of its own."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = function(*leaves, *others)
    generator = torch.Generator().manual_seed(99)
    loss = sum((torch.randn(out.shape, generator=generator) * out).sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(loss, leaves)]  # type: ignore[arg-type]


def assert_near(got: list[Tensor], expected: list[Tensor]) -> None:
    """A gate's gradients may cancel out, so those have more room than the outputs, which come first."""
    for place, (one, other) in enumerate(zip(got, expected, strict=True)):
        error = (one - other).norm() / other.norm().clamp(min=1e-6)
        assert error <= (2e-6 if place < 3 else 1e-5), f"{place}: relative error {error:.1e}"


def random_mask(tokens: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(tokens)) < 0.6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gating", VARIANTS, ids=str)
def test_every_variant_is_the_method_with_every_gradient(gating: Gating, masked: bool, backend: str) -> None:
    inputs, mask = make_inputs(gating, 37), random_mask(37) if masked else None
    assert_near(with_gradients(delta_memory, inputs, mask, gating, backend), with_gradients(by_hand, inputs, mask, gating))


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 130])
def test_every_length_is_the_method_with_every_gradient(tokens: int, backend: str) -> None:
    gating = Gating(8, decay="learned")
    inputs, mask = make_inputs(gating, tokens, seed=tokens), random_mask(tokens)
    assert_near(with_gradients(delta_memory, inputs, mask, gating, backend), with_gradients(by_hand, inputs, mask, gating))


def test_the_comparison_sees_a_bias_that_is_off_by_a_ten_thousandth() -> None:
    gating = Gating(8)
    projected, bias, state = make_inputs(gating, 20)
    got = delta_memory(projected, bias + 1e-4, state, None, gating)
    with pytest.raises(AssertionError, match="relative error"):
        assert_near([got.state], [by_hand(projected, bias, state, None, gating).state])


@pytest.mark.parametrize("backend", BACKENDS)
def test_reading_alone_and_writing_alone_are_the_halves_of_both(backend: str) -> None:
    gating = Gating(5, 2, "learned")
    projected, bias, state = make_inputs(gating, 70)
    mask = random_mask(70)
    whole = with_gradients(by_hand, (projected, bias, state), mask, gating)
    rest = projected[..., gating.query_rows :]
    written = with_gradients(delta_memory_write, (rest, bias, state), mask, gating, backend)
    assert written[0].shape == (2, 70, 0)
    assert_near(written[1:3], whole[1:3])
    frozen = projected.clone()
    frozen[..., gating.query_rows :] = 0
    frozen[..., 3 * gating.query_rows :][..., : gating.query_rows] = -1e9  # closed: nothing is written

    def by_hand_read(projected: Tensor, state: Tensor) -> tuple[Tensor]:
        closed = torch.cat([projected, frozen[..., gating.query_rows :]], dim=-1)
        return (by_hand(closed, torch.zeros_like(bias), state, mask, Gating(5, 2, "coupled")).reads,)

    def read(projected: Tensor, state: Tensor) -> tuple[Tensor]:
        return (delta_memory_read(projected, state, mask, gating, backend),)

    inputs = (projected[..., : gating.query_rows], state)
    assert_near(with_gradients(read, inputs), with_gradients(by_hand_read, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_counts_for_nothing_even_as_nan(backend: str) -> None:
    gating = Gating(8, 2, "learned", rowwise_gates=False)
    projected, bias, state = make_inputs(gating, 70)
    mask = random_mask(70)
    spoiled = torch.where(mask[..., None], projected, math.nan)
    got = with_gradients(delta_memory, (spoiled, bias, state), mask.long(), gating, backend)
    assert not got[0][~mask].any()
    assert not got[3][~mask].any()
    assert_near(got, with_gradients(by_hand, (projected, bias, state), mask, gating))
    none = torch.zeros_like(mask)
    assert torch.equal(delta_memory(spoiled, bias, state, none, gating, backend).state, state)
    assert not delta_memory_read(spoiled[..., : gating.query_rows], state, none, gating, backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_in_a_token_that_counts_is_seen_in_the_state(value: float, backend: str) -> None:
    gating = Gating(8, decay="learned")
    for place in (9, 17, 25, 33) if math.isnan(value) else (17,):  # a key, a value and both gates
        projected, bias, state = make_inputs(gating, 20)
        projected[0, 3, place] = value
        state_after = delta_memory(projected, bias, state, None, gating, backend).state
        assert not state_after[0].isfinite().all()
        assert state_after[1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_at_the_ends_of_what_float32_holds(backend: str) -> None:
    gating = Gating(4)
    projected, bias, state = make_inputs(gating, 40)
    scale = torch.tensor([0.0, 1e-30, 1e-7, 1e-4, 0.6, 0.63, 30.0, 1e4]).repeat(5)
    projected[..., :8] *= scale[:, None]  # queries and keys: no length, hardly any, a usual one, tanh at its ends
    projected[..., 12:] = torch.linspace(-90, 90, 160).view(40, 4)
    for number in with_gradients(delta_memory, (projected, bias, state), None, gating, backend):
        assert number.isfinite().all()
    got, expected = (f(projected, bias, state, None, gating) for f in (delta_memory, by_hand))
    assert_near(list(got), list(expected))
    logit = torch.tensor([-80.0, -20.0, -3.0, 0.0])  # the smallest gates have all their digits
    projected[0, 0, 12:] = logit
    opened = delta_memory(projected[:1, :1], torch.zeros(4), None, None, Gating(4), backend).write_gate_sum
    assert opened.item() == pytest.approx(logit.double().sigmoid().mean().item(), rel=1e-6)
    for number in logit:
        projected[0, 0, 12:] = number
        opened = delta_memory(projected[:1, :1], torch.zeros(4), None, None, Gating(4), backend).write_gate_sum
        assert opened.item() == pytest.approx(number.double().sigmoid().item(), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_no_state_half_precision_and_any_layout(backend: str) -> None:
    gating = Gating(8)
    projected, bias, state = make_inputs(gating, 9)
    nothing = delta_memory(projected[:, :0], bias, state, None, gating, backend)
    assert nothing.reads.shape == (2, 0, 8)
    assert torch.equal(nothing.state, state)
    assert not nothing.write_gate_sum.any()
    assert delta_memory_read(projected[:, :0, :8], state, None, gating, backend).shape == (2, 0, 8)
    fresh = delta_memory(projected, bias, None, None, gating, backend)
    expected = by_hand(projected, bias, torch.zeros_like(state), None, gating)
    assert_near(list(fresh), list(expected))
    half = projected.bfloat16()
    other = delta_memory(half, bias, state, None, gating, backend)
    assert_near(list(other), list(by_hand(half.float(), bias, state, None, gating)))
    strided = projected.transpose(0, 1).contiguous().transpose(0, 1)
    expected = by_hand(projected, bias, state, None, gating)
    assert_near(list(delta_memory(strided, bias, state, None, gating, backend)), list(expected))


@pytest.mark.parametrize("masked", [False, True])
def test_written_again_the_first_tokens_give_the_very_state_they_gave(masked: bool) -> None:
    gating = Gating(4, 2)
    projected, bias, state = make_inputs(gating, 70)
    mask = random_mask(70) if masked else None
    for tokens in (1, 65):
        part = None if mask is None else mask[:, :tokens]
        expected = delta_memory(projected[:, :tokens], bias, state, part, gating).state
        again = delta_memory_write(projected[:, :tokens, gating.query_rows :], bias, state, part, gating).state
        assert torch.equal(again, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_gate_is_over_states_and_tokens_that_count(masked: bool) -> None:
    gating = Gating(4, 3)
    projected, bias, state = make_inputs(gating, 11)
    mask = random_mask(11) if masked else None
    gates = (projected[..., 36:] + bias).sigmoid()
    expected = gates.mean() if mask is None else gates[mask].mean()
    kind = DeltaKind(4, 3)
    assert_near([kind.read_and_write(projected, bias, {"state": state}, mask).mean_write_gate(mask, 11)], [expected])
    none = torch.zeros(2, 11, dtype=torch.bool)
    assert kind.read_and_write(projected, bias, {"state": state}, none).mean_write_gate(none, 11) == 0


def test_what_does_not_fit_is_refused_by_name() -> None:
    gating = Gating(4)
    projected, bias, state = make_inputs(gating, 5)
    with pytest.raises(ValueError, match=r"^projected must be \[batch, tokens, 16\].*\(2, 5, 12\)"):
        delta_memory(projected[..., :12], bias, state, None, gating)
    with pytest.raises(ValueError, match=r"^gate_bias must .*\(4,\).*\(8,\)"):
        delta_memory(projected, torch.zeros(8), state, None, gating)
    with pytest.raises(ValueError, match=r"^state must .*\(2, 1, 4, 4\)"):
        delta_memory(projected, bias, state[:1], None, gating)
    with pytest.raises(ValueError, match=r"^mask must .*\(2, 5\)"):
        delta_memory_read(projected[..., :4], state, torch.ones(1, 5), gating)
    with pytest.raises(ValueError, match=r"unknown decay 'linear'.*coupled, learned, none"):
        Gating(4, decay="linear")  # type: ignore[arg-type]

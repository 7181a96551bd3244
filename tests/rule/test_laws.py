"""What is true of the delta rule whatever the numbers are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltamem.rule import delta_rule, read

SEEDS = st.integers(0, 2**31)
WIDTHS = st.integers(1, 6)
# Around the ends of chunks as well as short.
LENGTHS = st.one_of(st.integers(1, 12), st.sampled_from((31, 32, 33, 63, 64, 65, 70)))
BETAS = st.one_of(st.floats(0.0, 1.0, width=32), st.sampled_from((0.0, 0.5, 1.0)))


@dataclass
class Case:
    """A random problem; what a law needs beside it comes from the same generator."""

    generator: torch.Generator
    batch: int
    heads: int
    tokens: int
    r: int

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def unit(self) -> Tensor:
        return F.normalize(self.normal(self.batch, self.heads, self.tokens, self.r), dim=-1)

    def values(self) -> Tensor:
        return self.normal(self.batch, self.heads, self.tokens, self.r)

    def gates(self) -> Tensor:
        """Gates from 0 to 1, both of which occur."""
        return (self.values() * 2 + 0.5).clamp(0, 1)

    def mask(self) -> Tensor:
        return torch.rand(self.batch, self.tokens, generator=self.generator) < 0.6

    def state(self) -> Tensor:
        return self.normal(self.batch, self.heads, self.r, self.r)

    def inputs(self) -> list[Tensor]:
        """q, k, v, keep, erase, write, state."""
        return [self.unit(), self.unit(), self.values(), self.gates(), self.gates(), self.gates(), self.state()]


@st.composite
def cases(draw: st.DrawFn, tokens: st.SearchStrategy[int] = LENGTHS, r: st.SearchStrategy[int] = WIDTHS) -> Case:
    generator = torch.Generator().manual_seed(draw(SEEDS))
    return Case(generator, draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(tokens), draw(r))


def law(*backends: str, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A property that the named backends must have, all of them if none is named."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        test = examples(40)(given(**strategies)(test))
        return pytest.mark.parametrize("backend", backends or ("reference", "chunked", "compiled"))(test)

    return decorate


ONE_TOKEN = cases(tokens=st.just(1))


def tell(k: Tensor, v: Tensor, beta: Tensor | float, decay: str, state: Tensor | None, backend: str) -> Tensor:
    """Write pairs under one of the method's decays and return the state."""
    beta = torch.as_tensor(beta).expand_as(v)
    keep = 1 - beta if decay == "coupled" else torch.ones_like(v)
    return delta_rule(torch.zeros_like(k), k, v, keep, beta, beta, state, backend=backend)[1]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


# One write, without decay


@law(case=ONE_TOKEN)
def test_a_full_write_without_decay_is_recalled_perfectly_and_rewriting_changes_nothing(case: Case, backend: str) -> None:
    k, v = case.unit(), case.values()
    once = tell(k, v, 1.0, "none", case.state(), backend)
    close(read(k, once), v)
    close(tell(k, v, 1.0, "none", once, backend), once)


@law(case=cases(tokens=st.just(1), r=st.integers(2, 6)), beta=BETAS)
def test_without_decay_what_is_orthogonal_to_the_key_is_untouched(case: Case, beta: float, backend: str) -> None:
    k, old = case.unit(), case.state()
    other = case.unit()
    other = other - (other * k).sum(-1, keepdim=True) * k
    close(read(other, tell(k, case.values(), beta, "none", old, backend)), read(other, old))


@law(case=cases(tokens=st.just(6), r=st.just(6)))
def test_as_many_orthogonal_pairs_as_the_width_are_all_recalled_without_decay(case: Case, backend: str) -> None:
    k, _ = torch.linalg.qr(case.normal(case.batch, case.heads, 6, 6))
    v = case.values()
    close(read(k, tell(k, v, 1.0, "none", case.state(), backend)), v)


# Coupled decay: keep = 1 - beta


@law(case=ONE_TOKEN, beta=BETAS)
def test_a_coupled_write_reads_back_one_minus_two_beta_of_the_old_plus_beta_v(case: Case, beta: float, backend: str) -> None:
    k, v, old = case.unit(), case.values(), case.state()
    close(read(k, tell(k, v, beta, "coupled", old, backend)), (1 - 2 * beta) * read(k, old) + beta * v)


@law(case=ONE_TOKEN)
def test_a_full_coupled_write_reads_v_minus_the_old(case: Case, backend: str) -> None:
    k, v, old = case.unit(), case.values(), case.state()
    close(read(k, tell(k, v, 1.0, "coupled", old, backend)), v - read(k, old))


@law(case=ONE_TOKEN, beta=st.floats(0.1, 0.9))
def test_repeating_a_pair_under_coupled_decay_converges_to_half_of_v(case: Case, beta: float, backend: str) -> None:
    k, v = case.unit(), case.values()
    repeated = (x.expand(-1, -1, 80, -1) for x in (k, v))
    state = tell(*repeated, beta, "coupled", case.state(), backend)
    close(read(k, state), v / 2)


def row_bound(beta: Tensor, v: Tensor) -> Tensor:
    """The largest norm a row can have, from its gate's and its value's largest size.

    With unit keys a write multiplies a row by at most max(1 - b, |1 - 2 b|) and adds b |v|. Up to b = 2/3 the first is the
    larger, and a row of at most max|v| stays one. Above, B = (2 b - 1) B + b |v|.
    """
    beta, v = beta.amax(2), v.abs().amax(2)
    return torch.where(beta <= 2 / 3, v, beta * v / (2 - 2 * beta))


@law(case=cases(), ceiling=st.one_of(st.floats(0.01, 2 / 3), st.floats(2 / 3, 0.95)), same_key=st.booleans())
def test_a_row_under_coupled_decay_stays_within_its_bound(case: Case, ceiling: float, same_key: bool, backend: str) -> None:
    k, v = case.unit(), case.values()
    if same_key:
        k = k[:, :, :1].expand_as(k)
    beta = case.gates() * ceiling  # differs between rows and tokens
    norms = tell(k, v, beta, "coupled", None, backend).norm(dim=-1)
    assert (norms <= row_bound(beta, v) * (1 + 1e-5) + 1e-6).all()


@law(case=ONE_TOKEN, beta=st.floats(0.7, 0.95))
def test_above_two_thirds_an_alternating_value_reaches_the_bound_which_is_more_than_v(
    case: Case, beta: float, backend: str
) -> None:
    sign = torch.tensor([1.0, -1.0]).repeat(150)[:, None]
    k, v = case.unit().expand(-1, -1, 300, -1), case.values() * sign
    norms = tell(k, v, beta, "coupled", None, backend).norm(dim=-1)
    close(norms, row_bound(torch.full_like(v, beta), v))
    assert (norms > v.abs().amax(2)).all()


# Tokens, rows, cuts


@law(case=cases())
def test_masked_tokens_change_nothing(case: Case, backend: str) -> None:
    *tokens, state = case.inputs()
    mask = case.mask()
    reads, end = delta_rule(*tokens, state, mask, backend)
    assert not reads.transpose(1, 2)[~mask].any()
    for row in range(case.batch):
        there = (x[row : row + 1, :, mask[row]] for x in tokens)
        expected_reads, expected_end = delta_rule(*there, state[row : row + 1], backend=backend)
        close(reads[row, :, mask[row]], expected_reads[0])
        close(end[row], expected_end[0])


@law(case=cases())
def test_batch_rows_and_heads_are_independent_and_permute(case: Case, backend: str) -> None:
    inputs, mask = case.inputs(), case.mask()
    reads, end = delta_rule(*inputs, mask, backend)
    rows = torch.randperm(case.batch, generator=case.generator)
    heads = torch.randperm(case.heads, generator=case.generator)
    permuted = delta_rule(*(x[rows][:, heads] for x in inputs), mask[rows], backend)
    for got, whole in zip(permuted, (reads, end), strict=True):
        close(got, whole[rows][:, heads])
    alone = delta_rule(*(x[:1, :1] for x in inputs), mask[:1], backend)
    for got, whole in zip(alone, (reads, end), strict=True):
        close(got, whole[:1, :1])


@law(case=cases(), cut=st.floats(0.0, 1.0))
def test_where_a_sequence_is_cut_does_not_matter(case: Case, cut: float, backend: str) -> None:
    *tokens, state = case.inputs()
    whole, end = delta_rule(*tokens, state, backend=backend)
    at = round(cut * case.tokens)
    first, state = delta_rule(*(x[:, :, :at] for x in tokens), state, backend=backend)
    second, state = delta_rule(*(x[:, :, at:] for x in tokens), state, backend=backend)
    close(torch.cat([first, second], dim=2), whole)
    close(state, end)


@law(case=cases())
def test_a_token_reads_only_what_came_before_it(case: Case, backend: str) -> None:
    q, *tokens, state = case.inputs()
    at = case.tokens // 2
    reads, _ = delta_rule(q, *tokens, state, backend=backend)
    later = [torch.cat([x[:, :, :at], 1 - x[:, :, at:]], dim=2) for x in tokens]
    changed, _ = delta_rule(q, *later, state, backend=backend)
    close(changed[:, :, : at + 1], reads[:, :, : at + 1])


# Zero, and reading only


@law(case=cases())
def test_a_zero_state_reads_zero_and_stays_zero_if_nothing_is_written(case: Case, backend: str) -> None:
    q, k, v, keep, erase, write, state = case.inputs()
    reads, end = delta_rule(q, k, v, keep, erase, torch.zeros_like(write), torch.zeros_like(state), backend=backend)
    assert not reads.any()
    assert not end.any()
    first, _ = delta_rule(q, k, v, keep, erase, write, backend=backend)
    assert not first[:, :, 0].any()


@law(case=cases())
def test_read_is_the_rule_with_nothing_written(case: Case, backend: str) -> None:
    q, k, v, _, _, _, state = case.inputs()
    mask = case.mask()
    nothing, all_ = torch.zeros_like(v), torch.ones_like(v)
    reads, end = delta_rule(q, k, v, all_, nothing, nothing, state, mask, backend)
    assert torch.equal(end, state)
    close(read(q, state, mask), reads)


# The backends


@law("chunked", "compiled", case=cases())
def test_it_is_the_loop_with_gradients(case: Case, backend: str) -> None:
    inputs, mask = case.inputs(), case.mask()
    weights = [case.values(), case.state()]
    results = []
    for name in (backend, "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = delta_rule(*leaves, mask, name)
        loss = sum((weight * out).sum() for weight, out in zip(weights, outputs, strict=True))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for got, expected in zip(*results, strict=True):
        close(got, expected)

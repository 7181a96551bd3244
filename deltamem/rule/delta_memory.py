"""From a layer's projections to its reads: one function for all that happens between the two."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from deltamem.rule.backends import choose
from deltamem.rule.delta import check_shape, delta_rule, read
from deltamem.rule.delta_memory_operator import gated_rule_operator
from deltamem.rule.gates import Gating, queries, writes


class Gated(NamedTuple):
    """What came of a sequence.

    Args:
        reads: `[batch, tokens, num_states * r]`, each state's together.
        state: the states after the last token, `[batch, num_states, r, r]`.
        opened: how far the tokens opened the write gate: β, its mean over the rows of a state, summed over the tokens that
            count, `[batch, num_states]`.
    """

    reads: Tensor
    state: Tensor
    opened: Tensor

    def mean_gate(self, mask: Tensor | None, tokens: int) -> Tensor:
        """The mean write gate β over states and the tokens that count, a scalar with its gradient."""
        count = len(self.opened) * tokens if mask is None else mask.sum().clamp(min=1)
        return self.opened.mean(1).sum() / count


def gated_delta_rule(
    projected: Tensor, gate_bias: Tensor, state: Tensor | None, mask: Tensor | None, gating: Gating, backend: str = "auto"
) -> Gated:
    """Read and write memories, token by token, from what a layer projects of its tokens.

    Queries and keys are the tanh of their projections brought to unit length (over r; nothing is divided by less than 1e-6),
    gates are the logistic function of their logits (arXiv 2605.12357). Then `delta_rule`.

    Args:
        projected: the rows q | k | v | β | λ of every token, `[batch, tokens, gating.query_rows + gating.write_rows]`.
        gate_bias: added to the rows β | λ, `[gating.bias_rows]`.
        state: the states before the first token, `[batch, num_states, r, r]`; zero if None.
        mask: `[batch, tokens]`, True where a token counts; None if all do. Any other token reads zero and leaves the states
            as they were, whatever its projections are, NaN included.
        gating: what the rows mean.
        backend: as for `delta_rule`.

    Returns:
        Reads, states and gates, all float32.

    Raises:
        ValueError: a shape that does not fit, or an unknown backend.
    """
    return _run(projected, gate_bias, state, mask, gating, backend, reads=True)


def gated_write(
    projected: Tensor, gate_bias: Tensor, state: Tensor | None, mask: Tensor | None, gating: Gating, backend: str = "auto"
) -> Gated:
    """As `gated_delta_rule` for tokens that are only written: without the rows q, and with reads of width 0."""
    return _run(projected, gate_bias, state, mask, gating, backend, reads=False)


def gated_read(projected: Tensor, state: Tensor, mask: Tensor | None, gating: Gating, backend: str = "auto") -> Tensor:
    """As `gated_delta_rule` for tokens that only read: the rows q `[batch, tokens, gating.query_rows]` to their reads."""
    _check_shapes(projected, gating.query_rows, state, mask, gating)
    projected, state = projected.float(), state.float()
    mask = None if mask is None else mask.bool()
    if choose(backend, projected.device.type) == "compiled" and projected.shape[1] and not torch.compiler.is_compiling():
        bias = projected.new_empty(0)
        return _compiled_rule()(projected, bias, state, mask, gating, reads=True, writes=False)[0]
    return _joined(read(queries(projected, gating, mask), state))


def _run(
    projected: Tensor, gate_bias: Tensor, state: Tensor | None, mask: Tensor | None, gating: Gating, backend: str, reads: bool
) -> Gated:
    query_rows = gating.query_rows if reads else 0
    _check_shapes(projected, query_rows + gating.write_rows, state, mask, gating)
    check_shape("gate_bias", gate_bias, (gating.bias_rows,), "the gating")
    projected, gate_bias = projected.float(), gate_bias.float()
    mask = None if mask is None else mask.bool()
    batch, tokens, _ = projected.shape
    state = projected.new_zeros(batch, gating.num_states, gating.r, gating.r) if state is None else state.float()
    backend = choose(backend, projected.device.type)
    one_step = backend == "triton" and reads and tokens == 1 and not _needs_gradient(projected, gate_bias, state)
    if torch.compiler.is_compiling() and (one_step or (backend == "compiled" and tokens)):
        parts = (gating.r, gating.num_states, gating.decay, gating.decay_first, gating.rowwise_gates)
        return Gated(*gated_rule_operator(projected, gate_bias, state, mask, *parts, reads, backend))
    if backend == "compiled" and tokens:
        return Gated(*_compiled_rule()(projected, gate_bias, state, mask, gating, reads, writes=True))
    if one_step:
        return Gated(*_triton_step()(projected, gate_bias, state, mask, gating))
    made, opened = writes(projected[..., query_rows:], gate_bias, gating, mask)
    q = queries(projected[..., :query_rows], gating, mask) if reads else made.k
    seen, state = delta_rule(q, *made, state, backend=backend)
    return Gated(_joined(seen) if reads else projected[..., :0], state, opened)


@cache
def _compiled_rule() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    from deltamem.rule.cpu.gated import compiled_gated_rule

    return compiled_gated_rule


@cache
def _triton_step() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    from deltamem.rule.gpu.step import triton_step

    return triton_step


def _joined(reads: Tensor) -> Tensor:
    return rearrange(reads, "b n t r -> b t (n r)")


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check_shapes(projected: Tensor, rows: int, state: Tensor | None, mask: Tensor | None, gating: Gating) -> None:
    if projected.ndim != 3 or projected.shape[2] != rows:
        raise ValueError(f"projected must be [batch, tokens, {rows}] for {gating}, got the shape {tuple(projected.shape)}")
    batch, tokens, _ = projected.shape
    if state is not None:
        check_shape("state", state, (batch, gating.num_states, gating.r, gating.r), "projected")
    if mask is not None:
        check_shape("mask", mask, (batch, tokens), "projected")

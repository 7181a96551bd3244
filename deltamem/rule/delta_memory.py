"""The memory of δ-mem (arXiv 2605.12357): from a layer's projections to its reads, and the delta rule as a `MemoryKind`.

Shapes: B batch rows, N parallel states, T tokens, r width of a state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from deltamem.rule.backends import BACKENDS, choose, load
from deltamem.rule.delta import check_shape, delta_rule, read
from deltamem.rule.delta_memory_operator import delta_memory_operator
from deltamem.rule.gates import Gating, Writes, queries, writes
from deltamem.rule.kind import STATE, LayerState, Outcome, register_memory_kind

# The largest total width of a layer's states, in widths of the hidden states.
MOST_WIDTHS = 16
KEEP_BIAS = 1.5  # the initial bias of a learned decay's logit


class Passed(NamedTuple):
    """The result of passing a sequence through the memory.

    Args:
        reads: [B, T, N * r], state after state; of width 0 if nothing was read.
        state: the states after the last token, [B, N, r, r].
        write_gate_sum: the write gate β, averaged over the rows of a state and summed over the real tokens, [B, N].
    """

    reads: Tensor
    state: Tensor
    write_gate_sum: Tensor


@dataclass(frozen=True)
class DeltaKind(Gating):
    """The memory of δ-mem: parallel states, updated by the delta rule. Its options are those of `Gating` and two for its start.

    Args:
        write_bias: the initial bias of the write gate's logit.
        tie_queries: start the query projection as a copy of the key projection, so that a token reads what a similar token
            wrote, even before training.
    """

    write_bias: float = -1.5
    tie_queries: bool = False

    @classmethod
    def from_config(cls, config: Any) -> DeltaKind:
        """Make the kind for an adapter's configuration, a `DeltaMemConfig`."""
        return cls(
            config.r,
            config.num_states,
            config.decay,
            config.decay_first,
            config.rowwise_gates,
            write_bias=config.beta_bias,
            tie_queries=config.tie_query_init,
        )

    @property
    def state_parts(self) -> Mapping[str, tuple[int, ...]]:
        """See `MemoryKind`."""
        return {STATE: (self.num_states, self.r, self.r)}

    @property
    def read_rows(self) -> int:
        """See `MemoryKind`."""
        return self.query_rows

    @property
    def read_width(self) -> int:
        """See `MemoryKind`."""
        return self.query_rows

    def read_and_write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        """See `MemoryKind`, and `delta_memory`."""
        return _outcome(delta_memory(projected, bias, None if state is None else state[STATE], valid, self))

    def write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        """See `MemoryKind`."""
        return _outcome(delta_memory_write(projected, bias, None if state is None else state[STATE], valid, self))

    def read(self, projected: Tensor, state: LayerState, valid: Tensor | None) -> Tensor:
        """See `MemoryKind`."""
        return delta_memory_read(projected, state[STATE], valid, self)

    @torch.no_grad()
    def initialise(self, weight: Tensor, bias: Tensor) -> None:
        """See `MemoryKind`. The rows q, k and v start as in a new linear layer; the gates do not depend on the token yet."""
        rows, write_gates = self.query_rows, self.num_states * self.gate_rows
        for part in weight[: 3 * rows].split(rows):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        if self.tie_queries:
            weight[:rows].copy_(weight[rows : 2 * rows])
        weight[3 * rows :].zero_()
        bias[:write_gates].fill_(self.write_bias)
        bias[write_gates:].fill_(KEEP_BIAS)

    @property
    def row_groups(self) -> Mapping[str, int]:
        """See `MemoryKind`."""
        return {"q": self.query_rows, "k": self.query_rows, "v": self.query_rows, "gates": self.bias_rows}

    def check_fits(self, width: int) -> None:
        """See `MemoryKind`. Each state has its own projections, so all states together may be wider than the hidden states."""
        if self.r > width or self.query_rows > MOST_WIDTHS * width:
            raise ValueError(
                f"r={self.r} and num_states={self.num_states} are not accepted for a model with hidden_size={width}: the keys "
                "of a state are computed from its hidden states. Give r up to that size, and r * num_states up to "
                f"{MOST_WIDTHS} times that size"
            )

    def gates_at_rest(self, bias: Tensor) -> Mapping[str, Tensor]:
        """See `MemoryKind`."""
        opened = torch.sigmoid(bias).tensor_split(2 if self.decay == "learned" else 1)
        keep = {"coupled": 1 - opened[0], "learned": opened[-1], "none": torch.ones_like(opened[0])}[self.decay]
        return {"write": opened[0], "keep": keep}

    def writes(self, projected: Tensor, bias: Tensor, valid: Tensor | None) -> Writes:
        """The keys, values and gates of tokens, each [B, N, T, r], from their rows [B, T, write_rows]."""
        return writes(projected, bias, self, valid)[0]

    def mean_gates(self, projected: Tensor, bias: Tensor) -> Mapping[str, Tensor]:
        """See `MemoryKind`: the write gate β, and the share of a state that a write keeps."""
        gates, _ = writes(projected, bias, self, None)
        return {"write": gates.write.mean((1, 3)), "keep": gates.keep.mean((1, 3))}

    def describe(self) -> str:
        """See `MemoryKind`."""
        return "one state" if self.num_states == 1 else f"{self.num_states} parallel states"


register_memory_kind("delta", DeltaKind.from_config)


def delta_memory(
    projected: Tensor, gate_bias: Tensor, state: Tensor | None, mask: Tensor | None, gating: Gating, backend: str = "auto"
) -> Passed:
    """Read and write memories token by token, from a layer's projections of its tokens.

    Queries and keys are the tanh of their projections, normalised to unit length over r (with 1e-6 as the smallest divisor).
    Gates are the logistic function of their logits (arXiv 2605.12357). Then follows `delta_rule`.

    Args:
        projected: the rows q | k | v | β | λ of every token, `[batch, tokens, gating.query_rows + gating.write_rows]`.
        gate_bias: added to the rows β | λ, `[gating.bias_rows]`.
        state: the states before the first token, `[batch, num_states, r, r]`; zero if None.
        mask: `[batch, tokens]`, True for real tokens; None if all are real. Any other token reads zero and leaves the states
            unchanged, whatever its projections are, NaN included.
        gating: the layout of the rows.
        backend: as for `delta_rule`.

    Returns:
        Reads, states and gates, all float32.

    Raises:
        ValueError: a shape does not fit, or the backend is unknown.
    """
    return _run(projected, gate_bias, state, mask, gating, backend, reads=True)


def delta_memory_write(
    projected: Tensor, gate_bias: Tensor, state: Tensor | None, mask: Tensor | None, gating: Gating, backend: str = "auto"
) -> Passed:
    """`delta_memory` for tokens that only write: without the rows q, and with reads of width 0."""
    return _run(projected, gate_bias, state, mask, gating, backend, reads=False)


def delta_memory_read(projected: Tensor, state: Tensor, mask: Tensor | None, gating: Gating, backend: str = "auto") -> Tensor:
    """`delta_memory` for tokens that only read: from the rows q `[batch, tokens, gating.query_rows]` to the reads."""
    _check_shapes(projected, gating.query_rows, state, mask, gating)
    projected, state = projected.float(), state.float()
    mask = None if mask is None else mask.bool()
    sequence = BACKENDS[choose(backend, projected.device.type)].sequence
    if sequence is not None and projected.shape[1] and not torch.compiler.is_compiling():
        reads: Tensor = load(sequence)(projected, projected.new_empty(0), state, mask, gating, reads=True, writes=False)[0]
        return reads
    return _joined(read(queries(projected, gating, mask), state))


def _run(
    projected: Tensor, gate_bias: Tensor, state: Tensor | None, mask: Tensor | None, gating: Gating, backend: str, reads: bool
) -> Passed:
    query_rows = gating.query_rows if reads else 0
    _check_shapes(projected, query_rows + gating.write_rows, state, mask, gating)
    check_shape("gate_bias", gate_bias, (gating.bias_rows,), "the gating")
    projected, gate_bias = projected.float(), gate_bias.float()
    mask = None if mask is None else mask.bool()
    batch, tokens, _ = projected.shape
    state = projected.new_zeros(batch, gating.num_states, gating.r, gating.r) if state is None else state.float()
    backend = choose(backend, projected.device.type)
    of_backend = BACKENDS[backend]
    in_sequence = of_backend.sequence is not None and tokens > 0
    in_step = of_backend.step is not None and reads and tokens == 1 and not _needs_gradient(projected, gate_bias, state)
    if torch.compiler.is_compiling() and (in_sequence or in_step):
        parts = (gating.r, gating.num_states, gating.decay, gating.decay_first, gating.rowwise_gates)
        return Passed(*delta_memory_operator(projected, gate_bias, state, mask, *parts, reads, backend))
    if of_backend.sequence is not None and in_sequence:
        return Passed(*load(of_backend.sequence)(projected, gate_bias, state, mask, gating, reads, writes=True))
    if of_backend.step is not None and in_step:
        return Passed(*load(of_backend.step)(projected, gate_bias, state, mask, gating))
    made, opened = writes(projected[..., query_rows:], gate_bias, gating, mask)  # [B, N, T, r] each, [B, N]
    q = queries(projected[..., :query_rows], gating, mask) if reads else made.k  # [B, N, T, r]
    seen, state = delta_rule(q, *made, state, backend=backend)  # [B, N, T, r], [B, N, r, r]
    return Passed(_joined(seen) if reads else projected[..., :0], state, opened)


def _outcome(passed: Passed) -> Outcome:
    return Outcome(passed.reads, {STATE: passed.state}, passed.write_gate_sum)


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

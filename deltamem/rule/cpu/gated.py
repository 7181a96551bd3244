"""The fused function from a layer's projections to its reads on a CPU, with its gradient.

A memory is one state of one batch row; memory n is state `n % states` of row `n // states`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltamem.rule.cpu.chunk import (
    CHUNK,
    KEEP,
    KEY,
    PARTS,
    QUERY,
    VALUE,
    WRITE,
    backward,
    load_state,
    padded,
    read_and_write,
    store_state,
)
from deltamem.rule.cpu.compile import entry, flags, floats, part, run
from deltamem.rule.cpu.gates import (
    DECAYS,
    LEARNED,
    gather,
    open_gates,
    open_gates_backward,
    places,
    scatter,
    scatter_gate,
    unit,
    unit_backward,
)
from deltamem.rule.cpu.rule import chunk_starts
from deltamem.rule.gates import Gating

_FLOAT = np.float32
_ZERO, _ONE = np.float32(0), np.float32(1)


def compiled_gated_rule(
    projected: Tensor, gate_bias: Tensor, state: Tensor, mask: Tensor | None, gating: Gating, reads: bool, writes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `deltamem.rule.delta_memory`; all tensors are checked, float32 (the mask boolean), on the CPU, of 1 token or more."""
    projected, gate_bias, state = projected.contiguous(), gate_bias.contiguous(), state.contiguous()
    mask = None if mask is None else mask.contiguous()
    if torch.is_grad_enabled() and (projected.requires_grad or gate_bias.requires_grad or state.requires_grad):
        return _GatedRule.apply(projected, gate_bias, state, mask, gating, reads, writes)
    return _launch(projected, gate_bias, state, mask, gating, reads, writes, None)


class _GatedRule(torch.autograd.Function):
    """Saves the projections and the state before every chunk; the backward pass runs each chunk again."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, bias: Tensor, state: Tensor, mask: Tensor | None, gating: Gating, reads: bool, writes: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        starts = chunk_starts(state.shape[0] * gating.num_states, projected.shape[1], gating.r)
        outputs = _launch(projected, bias, state, mask, gating, reads, writes, starts)
        ctx.save_for_backward(projected, bias, mask, starts)
        ctx.settings = (gating, reads, writes)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_reads: Tensor, d_end: Tensor, d_opened: Tensor) -> tuple[Tensor | None, ...]:
        projected, bias, mask, starts = ctx.saved_tensors
        gating, reads, writes = ctx.settings
        d_reads, d_end, d_opened = d_reads.contiguous(), d_end.contiguous(), d_opened.contiguous()
        batch, length, _ = projected.shape
        d_projected, d_state = torch.empty_like(projected), torch.empty_like(d_end)
        d_bias = bias.new_zeros(batch, gating.num_states, 2, gating.gate_rows)  # of β and λ, for each memory
        tensors = (projected, bias, starts, d_reads, d_end, d_opened, d_projected, d_bias, d_state)
        addresses = [x.data_ptr() for x in tensors]
        work = 16 * length * gating.r * gating.r
        run(_backward, batch * gating.num_states, work, *addresses, _address(mask), *_sizes(projected, gating, reads, writes))
        d_bias = d_bias.sum(0).transpose(0, 1).flatten()[: len(bias)]  # [bias_rows]
        return d_projected, d_bias, d_state, None, None, None, None


def _launch(
    projected: Tensor, bias: Tensor, state: Tensor, mask: Tensor | None, gating: Gating, reads: bool, writes: bool,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, _ = projected.shape
    out = projected.new_empty(batch, length, gating.query_rows if reads else 0)
    end, opened = torch.empty_like(state), projected.new_empty(batch, gating.num_states)
    addresses = (
        projected.data_ptr(), bias.data_ptr(), state.data_ptr(), out.data_ptr(), end.data_ptr(), opened.data_ptr(),
        _address(starts), _address(mask),
    )  # fmt: skip
    sizes = _sizes(projected, gating, reads, writes)
    run(_forward, batch * gating.num_states, 8 * length * gating.r * gating.r, *addresses, *sizes)
    return out, end, opened


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _sizes(projected: Tensor, gating: Gating, reads: bool, writes: bool) -> tuple[int, ...]:
    _, length, rows = projected.shape
    first = int(gating.decay_first)
    return length, rows, gating.r, gating.num_states, gating.gate_rows, DECAYS[gating.decay], first, int(reads), int(writes)


@part
def _own_bias(bias: Any, own: Any, number: Any, states: Any, gate_rows: Any, r: Any, decay: Any) -> None:
    """Copy the biases of one state's β and λ to `[2, width]`: one per row of the state, or a single one for all rows."""
    own[:] = _ZERO
    for kind in range(2 if decay == LEARNED else 1):
        for i in range(r):
            own[kind, i] = bias[(kind * states + number) * gate_rows + (i if gate_rows == r else 0)]


@part
def _real_tokens(mask: Any, masked: Any, start: Any, tokens: Any, real: Any) -> None:
    for t in range(tokens):
        real[t] = mask[start + t] != 0 if masked else True


@part
def _prepare(
    projected: Any, start: Any, rows: Any, at: Any, bias: Any, real: Any, parts: Any, lengths: Any,
    tokens: Any, r: Any, gate_rows: Any, width: Any, decay: Any, decay_first: Any, reads: Any, writes: Any,
) -> None:  # fmt: skip
    """Compute the parts of a chunk's tokens; without `reads` the queries are zero, without `writes` nothing is written."""
    parts[:] = _ZERO
    if reads:
        gather(projected, start + at[0], rows, real, parts[QUERY], tokens, r, width, 1)
        unit(parts[QUERY], lengths[0], tokens, width)
    if writes:
        step = 1 if gate_rows == r else 0
        gather(projected, start + at[1], rows, real, parts[KEY], tokens, r, width, 1)
        unit(parts[KEY], lengths[1], tokens, width)
        gather(projected, start + at[2], rows, real, parts[VALUE], tokens, r, width, 1)
        gather(projected, start + at[3], rows, real, parts[WRITE], tokens, r, width, step)
        if decay == LEARNED:
            gather(projected, start + at[4], rows, real, parts[KEEP], tokens, r, width, step)
        open_gates(parts, bias, real, tokens, width, decay, decay_first)
    else:
        parts[KEEP] = _ONE


@entry
def _forward(
    projected: int, bias: int, state: int, reads: int, end: int, opened: int, starts: int, mask: int,
    length: int, rows: int, r: int, states: int, gate_rows: int, decay: int, decay_first: int, reading: int, writing: int,
    first: int, last: int,
) -> None:  # fmt: skip
    """The addresses of float32 arrays (`mask`: booleans; `starts` and `mask` may be 0 for none), sizes and settings."""
    batch, width, chunks, most = (last + states - 1) // states, padded(r), (length + CHUNK - 1) // CHUNK, min(length, CHUNK)
    source, biases = carray(floats(projected), batch * length * rows), carray(floats(bias), 2 * states * gate_rows)
    valid, seen_by_all = carray(flags(mask), batch * length), carray(floats(reads), batch * length * states * r)
    begin, finish = carray(floats(state), last * r * r), carray(floats(end), last * r * r)
    gate_sums, kept = carray(floats(opened), last), carray(floats(starts), last * chunks * r * width)
    parts, seen, memory = np.empty((PARTS, most * width), _FLOAT), np.empty(most * width, _FLOAT), np.empty(r * width, _FLOAT)
    own_bias, lengths, real = np.empty((2, width), _FLOAT), np.empty((2, most), _FLOAT), np.empty(most, np.bool_)
    for n in range(first, last):
        row, number = n // states, n % states
        at = places(rows, r, states, gate_rows, number, reading)
        if writing:
            _own_bias(biases, own_bias, number, states, gate_rows, r, decay)
        load_state(begin, n * r * r, memory, r, width)
        gate_sum = 0.0
        for chunk in range(chunks):
            token, tokens = row * length + chunk * CHUNK, min(CHUNK, length - chunk * CHUNK)
            if starts:
                place = (n * chunks + chunk) * r * width
                kept[place : place + r * width] = memory
            _real_tokens(valid, mask != 0, token, tokens, real)
            _prepare(
                source, token * rows, rows, at, own_bias, real, parts, lengths,
                tokens, r, gate_rows, width, decay, decay_first, reading, writing,
            )  # fmt: skip
            read_and_write(parts, seen, memory, 0, tokens, r, width)
            if reading:
                scatter(seen, seen_by_all, (token * states + number) * r, states * r, real, tokens, r, width)
            for t in range(tokens):
                for i in range(r):
                    gate_sum += parts[WRITE, t * width + i]
        gate_sums[n] = gate_sum / r
        store_state(memory, finish, n * r * r, r, width)


@entry
def _backward(
    projected: int, bias: int, starts: int, d_reads: int, d_end: int, d_opened: int,
    d_projected: int, d_bias: int, d_state: int, mask: int,
    length: int, rows: int, r: int, states: int, gate_rows: int, decay: int, decay_first: int, reading: int, writing: int,
    first: int, last: int,
) -> None:  # fmt: skip
    """Like `_forward`; `d_bias` is `[memories, 2, gate_rows]` and must be zero on entry."""
    batch, width, chunks, most = (last + states - 1) // states, padded(r), (length + CHUNK - 1) // CHUNK, min(length, CHUNK)
    source, biases = carray(floats(projected), batch * length * rows), carray(floats(bias), 2 * states * gate_rows)
    valid, incoming = carray(flags(mask), batch * length), carray(floats(d_reads), batch * length * states * r)
    finish, begin = carray(floats(d_end), last * r * r), carray(floats(d_state), last * r * r)
    d_gate_sums, kept = carray(floats(d_opened), last), carray(floats(starts), last * chunks * r * width)
    target, d_biases = carray(floats(d_projected), batch * length * rows), carray(floats(d_bias), (last, 2, gate_rows))
    parts, gradients = np.empty((PARTS, most * width), _FLOAT), np.empty((PARTS, most * width), _FLOAT)
    seen, d_seen = np.empty(most * width, _FLOAT), np.zeros(most * width, _FLOAT)
    states_inside, d_memory = np.empty((most + 1) * r * width, _FLOAT), np.empty(r * width, _FLOAT)
    own_bias, lengths, real = np.empty((2, width), _FLOAT), np.empty((2, most), _FLOAT), np.empty(most, np.bool_)
    for n in range(first, last):
        row, number = n // states, n % states
        at = places(rows, r, states, gate_rows, number, reading)
        if writing:
            _own_bias(biases, own_bias, number, states, gate_rows, r, decay)
        load_state(finish, n * r * r, d_memory, r, width)
        for chunk in range(chunks - 1, -1, -1):
            token, tokens = row * length + chunk * CHUNK, min(CHUNK, length - chunk * CHUNK)
            place, start = (n * chunks + chunk) * r * width, token * rows
            states_inside[: r * width] = kept[place : place + r * width]
            _real_tokens(valid, mask != 0, token, tokens, real)
            _prepare(
                source, start, rows, at, own_bias, real, parts, lengths,
                tokens, r, gate_rows, width, decay, decay_first, reading, writing,
            )  # fmt: skip
            read_and_write(parts, seen, states_inside, r * width, tokens, r, width)
            if reading:
                gather(incoming, (token * states + number) * r, states * r, real, d_seen, tokens, r, width, 1)
            backward(parts, states_inside, d_seen, d_memory, gradients, tokens, r, width)
            if reading:
                unit_backward(parts[QUERY], lengths[0], gradients[QUERY], tokens, width)
                scatter(gradients[QUERY], target, start + at[0], rows, real, tokens, r, width)
            if writing:
                unit_backward(parts[KEY], lengths[1], gradients[KEY], tokens, width)
                open_gates_backward(parts, gradients, d_gate_sums[n] / _FLOAT(r), real, tokens, width, decay, decay_first)
                scatter(gradients[KEY], target, start + at[1], rows, real, tokens, r, width)
                scatter(gradients[VALUE], target, start + at[2], rows, real, tokens, r, width)
                scatter_gate(gradients[WRITE], target, start + at[3], rows, d_biases[n, 0], tokens, r, gate_rows, width)
                if decay == LEARNED:
                    scatter_gate(gradients[KEEP], target, start + at[4], rows, d_biases[n, 1], tokens, r, gate_rows, width)
        store_state(d_memory, begin, n * r * r, r, width)

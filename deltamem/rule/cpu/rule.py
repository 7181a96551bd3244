"""The compiled backend of the delta rule, with its gradient. A memory is one head of one batch row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltamem.rule.cpu.chunk import CHUNK, PARTS, backward, load_state, padded, read_and_write, store_state
from deltamem.rule.cpu.compile import entry, floats, part, run

_FLOAT = np.float32
_ZERO = np.float32(0)


def compiled_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See `deltamem.rule.delta_rule`; q to write are [batch, heads, tokens, r], state is [batch, heads, r, r], on the CPU."""
    return _DeltaRule.apply(q, k, v, keep, erase, write, state)


class _DeltaRule(torch.autograd.Function):
    """Saves the inputs and the state before every chunk; the backward pass runs each chunk again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        inputs = tuple(x.contiguous() for x in inputs)
        *tokens, state = inputs
        batch, heads, length, r = tokens[0].shape
        reads, end = torch.empty_like(tokens[0]), torch.empty_like(state)
        starts = chunk_starts(batch * heads, length, r) if any(ctx.needs_input_grad) else None
        addresses = [x.data_ptr() for x in (*inputs, reads, end)]
        run(_forward, batch * heads, 4 * length * r * r, *addresses, 0 if starts is None else starts.data_ptr(), length, r)
        ctx.save_for_backward(*inputs, starts)
        return reads, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, read_gradients: Tensor, end_gradient: Tensor) -> tuple[Tensor, ...]:
        *inputs, starts = ctx.saved_tensors
        batch, heads, length, r = read_gradients.shape
        gradients = tuple(torch.empty_like(x) for x in inputs)
        read_gradients, end_gradient = read_gradients.contiguous(), end_gradient.contiguous()
        addresses = [x.data_ptr() for x in (*inputs[:6], starts, read_gradients, end_gradient, *gradients)]
        run(_backward, batch * heads, 16 * length * r * r, *addresses, length, r)
        return gradients


def chunk_starts(memories: int, length: int, r: int) -> Tensor:
    """An uninitialised buffer for the state before every chunk of every memory, [memories, chunks, r * width]."""
    return torch.empty(memories, -(-length // CHUNK), r * padded.py_func(r), dtype=torch.float32, device="cpu")


@part
def _gather(sources: Any, start: Any, parts: Any, tokens: Any, r: Any, width: Any) -> None:
    """Copy the tokens `[tokens, r]` at `start` of every source into the scratch arrays."""
    for n in range(len(sources)):
        for t in range(tokens):
            for i in range(width):
                parts[n, t * width + i] = sources[n][start + t * r + i] if i < r else _ZERO


@part
def _scatter(parts: Any, targets: Any, start: Any, tokens: Any, r: Any, width: Any) -> None:
    """Copy the scratch arrays to the tokens `[tokens, r]` at `start` of every target."""
    for n in range(len(targets)):
        for t in range(tokens):
            for i in range(r):
                targets[n][start + t * r + i] = parts[n, t * width + i]


@entry
def _forward(
    q: int, k: int, v: int, keep: int, erase: int, write: int, state: int,
    reads: int, end: int, starts: int, length: int, r: int, first: int, last: int,
) -> None:  # fmt: skip
    """The addresses of float32 arrays (`starts` may be 0 for none) and sizes; see `run` for first and last."""
    size, width, chunks = last * length * r, padded(r), (length + CHUNK - 1) // CHUNK
    sources = (
        carray(floats(q), size), carray(floats(k), size), carray(floats(v), size),
        carray(floats(keep), size), carray(floats(erase), size), carray(floats(write), size),
    )  # fmt: skip
    begin, finish, targets = (
        carray(floats(state), last * r * r),
        carray(floats(end), last * r * r),
        (carray(floats(reads), size),),
    )
    kept = carray(floats(starts), last * chunks * r * width)
    room = min(length, CHUNK) * width
    parts, seen, memory = np.empty((PARTS, room), _FLOAT), np.empty((1, room), _FLOAT), np.empty(r * width, _FLOAT)
    for n in range(first, last):
        load_state(begin, n * r * r, memory, r, width)
        for chunk in range(chunks):
            at, tokens = (n * length + chunk * CHUNK) * r, min(CHUNK, length - chunk * CHUNK)
            if starts:
                place = (n * chunks + chunk) * r * width
                kept[place : place + r * width] = memory
            _gather(sources, at, parts, tokens, r, width)
            read_and_write(parts, seen[0], memory, 0, tokens, r, width)
            _scatter(seen, targets, at, tokens, r, width)
        store_state(memory, finish, n * r * r, r, width)


@entry
def _backward(
    q: int, k: int, v: int, keep: int, erase: int, write: int, starts: int, reads: int, end: int,
    d_q: int, d_k: int, d_v: int, d_keep: int, d_erase: int, d_write: int, d_state: int,
    length: int, r: int, first: int, last: int,
) -> None:  # fmt: skip
    """The addresses of float32 arrays: `reads` and `end` are the incoming gradients, `d_q` to `d_state` the results."""
    size, width, chunks = last * length * r, padded(r), (length + CHUNK - 1) // CHUNK
    sources = (
        carray(floats(q), size), carray(floats(k), size), carray(floats(v), size),
        carray(floats(keep), size), carray(floats(erase), size), carray(floats(write), size),
    )  # fmt: skip
    targets = (
        carray(floats(d_q), size), carray(floats(d_k), size), carray(floats(d_v), size),
        carray(floats(d_keep), size), carray(floats(d_erase), size), carray(floats(d_write), size),
    )  # fmt: skip
    kept, incoming = carray(floats(starts), last * chunks * r * width), (carray(floats(reads), size),)
    finish, begin = carray(floats(end), last * r * r), carray(floats(d_state), last * r * r)
    most = min(length, CHUNK)
    parts, gradients = np.empty((PARTS, most * width), _FLOAT), np.empty((PARTS, most * width), _FLOAT)
    seen, d_seen = np.empty(most * width, _FLOAT), np.empty((1, most * width), _FLOAT)
    states, d_memory = np.empty((most + 1) * r * width, _FLOAT), np.empty(r * width, _FLOAT)
    for n in range(first, last):
        load_state(finish, n * r * r, d_memory, r, width)
        for chunk in range(chunks - 1, -1, -1):
            at, tokens = (n * length + chunk * CHUNK) * r, min(CHUNK, length - chunk * CHUNK)
            place = (n * chunks + chunk) * r * width
            states[: r * width] = kept[place : place + r * width]
            _gather(sources, at, parts, tokens, r, width)
            read_and_write(parts, seen, states, r * width, tokens, r, width)
            _gather(incoming, at, d_seen, tokens, r, width)
            backward(parts, states, d_seen[0], d_memory, gradients, tokens, r, width)
            _scatter(gradients, targets, at, tokens, r, width)
        store_state(d_memory, begin, n * r * r, r, width)

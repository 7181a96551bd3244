"""The token loop over one chunk of one memory, forward and backward.

The queries, keys, values and gates of the tokens are in scratch arrays `[tokens * width]`, where `width` is r rounded up to
whole lanes; the rest is zero. A state is `[r * width]` with its rows along the lanes: element `j * width + i` is `S[i, j]`. The
rows of a state are independent memories that share queries and keys, so eight rows at a time run through the whole chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deltamem.rule.cpu.compile import part
from deltamem.rule.cpu.lanes import LANES, load, spread, store, total

# The number of tokens between two states that are saved for the backward pass.
CHUNK = 64
QUERY, KEY, VALUE, KEEP, ERASE, WRITE = range(6)
PARTS = 6
_ZERO = np.float32(0)


@part
def padded(r: Any) -> Any:
    """The width of scratch arrays for r rows."""
    return (r + LANES - 1) // LANES * LANES


@part
def read_and_write(parts: Any, reads: Any, states: Any, stride: Any, tokens: Any, r: Any, width: Any) -> None:
    """Run the rule over a chunk.

    Args:
        parts: `[PARTS, tokens * width]`.
        reads: `[tokens * width]`, filled in.
        states: the state before token t is at `t * stride`; the state after it goes to `(t + 1) * stride`.
        stride: 0 updates one state in place; `r * width` keeps the states before and after every token.
        tokens, r, width: sizes.
    """
    query, key, value = parts[QUERY], parts[KEY], parts[VALUE]
    keep, erase, write = parts[KEEP], parts[ERASE], parts[WRITE]
    for block in range(0, width, LANES):
        for t in range(tokens):
            shared, own = t * width, t * width + block
            before, after = t * stride + block, (t + 1) * stride + block
            read, predicted = spread(_ZERO), spread(_ZERO)
            for j in range(r):
                column = load(states, before + j * width)
                read += spread(query[shared + j]) * column
                predicted += spread(key[shared + j]) * column
            store(reads, own, read)
            kept = load(keep, own)
            change = load(write, own) * load(value, own) - load(erase, own) * predicted
            for j in range(r):
                column = load(states, before + j * width)
                store(states, after + j * width, kept * column + spread(key[shared + j]) * change)


@part
def backward(
    parts: Any, states: Any, read_gradients: Any, state_gradient: Any, gradients: Any, tokens: Any, r: Any, width: Any
) -> None:
    """Compute the gradients of a chunk.

    Args:
        parts: `[PARTS, tokens * width]`.
        states: `[(tokens + 1) * r * width]`, all states from `read_and_write`.
        read_gradients: `[tokens * width]`.
        state_gradient: `[r * width]`: on entry for the state after the chunk, on return for the state before it.
        gradients: `[PARTS, tokens * width]`, the gradients of `parts`, filled in.
        tokens, r, width: sizes.
    """
    query, key, value = parts[QUERY], parts[KEY], parts[VALUE]
    keep, erase, write = parts[KEEP], parts[ERASE], parts[WRITE]
    d_query, d_key, d_value = gradients[QUERY], gradients[KEY], gradients[VALUE]
    d_keep, d_erase, d_write = gradients[KEEP], gradients[ERASE], gradients[WRITE]
    d_query[: tokens * width] = _ZERO
    d_key[: tokens * width] = _ZERO
    for block in range(0, width, LANES):
        for t in range(tokens - 1, -1, -1):
            shared, own = t * width, t * width + block
            before = t * r * width + block
            predicted, d_change, d_kept = spread(_ZERO), spread(_ZERO), spread(_ZERO)
            for j in range(r):
                column, d_column = load(states, before + j * width), load(state_gradient, block + j * width)
                predicted += spread(key[shared + j]) * column
                d_change += spread(key[shared + j]) * d_column
                d_kept += column * d_column
            erased, written, kept = load(erase, own), load(write, own), load(keep, own)
            change = written * load(value, own) - erased * predicted
            d_predicted = spread(_ZERO) - erased * d_change
            d_read = load(read_gradients, own)
            store(d_keep, own, d_kept)
            store(d_erase, own, spread(_ZERO) - predicted * d_change)
            store(d_write, own, load(value, own) * d_change)
            store(d_value, own, written * d_change)
            for j in range(r):
                at = block + j * width
                column, d_column = load(states, before + j * width), load(state_gradient, at)
                d_query[shared + j] += total(column * d_read)
                d_key[shared + j] += total(d_column * change + column * d_predicted)
                d_column = kept * d_column + spread(query[shared + j]) * d_read + spread(key[shared + j]) * d_predicted
                store(state_gradient, at, d_column)


@part
def load_state(source: Any, start: Any, state: Any, r: Any, width: Any) -> None:
    """Copy the state `[r, r]` at `source[start:]` to the layout of the loops, `[r * width]`."""
    for j in range(r):
        for i in range(width):
            state[j * width + i] = source[start + i * r + j] if i < r else _ZERO


@part
def store_state(state: Any, target: Any, start: Any, r: Any, width: Any) -> None:
    """Copy a state in the layout of the loops to `[r, r]` at `target[start:]`."""
    for i in range(r):
        for j in range(r):
            target[start + i * r + j] = state[j * width + i]

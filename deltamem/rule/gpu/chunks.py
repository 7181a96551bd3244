"""Kernels of the chunk-parallel rule, forward.

Over a chunk, row i of a state becomes `M s + b`: each token multiplies the row by `keep_i I - erase_i k k^T` and adds
`write_i v_i k`. So (1) the maps of all chunks and rows are computed in parallel, (2) the maps are applied one after the other,
which gives the state at the start of every chunk, and (3) all chunks are read in parallel from their starts. Nothing is divided
by a product of gates.

Shapes: tokens are `[memories, length, r]` and states `[memories, chunks, r, r]`, where a memory is one head of one batch row.
In registers, r is padded to `R`, the next power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def chunk_maps(
    k, v, keep, erase, write, matrix, offset,
    length, chunks, r, R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The map of one row over one chunk: `matrix` is `[memories, chunks, r, r, r]`, `offset` is `[memories, chunks, r, r]`."""
    place, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    memory, chunk = place // chunks, place % chunks
    columns = tl.arange(0, R)
    inside = columns < r
    m = tl.where(columns[:, None] == columns[None, :], 1.0, 0.0)  # [R, R]
    b = tl.zeros((R,), tl.float32)  # [R]
    for t in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, length)):
        at = (memory * length + t) * r
        key = tl.load(k + at + columns, inside, 0.0)
        kept, erased = tl.load(keep + at + row), tl.load(erase + at + row)
        written = tl.load(write + at + row) * tl.load(v + at + row)
        m = kept * m - erased * key[:, None] * tl.sum(key[:, None] * m, 0)[None, :]
        b = kept * b + (written - erased * tl.sum(key * b, 0)) * key
    here = place * r + row
    square = columns[:, None] * r + columns[None, :]
    tl.store(matrix + here * r * r + square, m, inside[:, None] & inside[None, :])
    tl.store(offset + here * r + columns, b, inside)


@triton.jit
def chunk_starts(matrix, offset, state, starts, end, chunks, r, R: tl.constexpr):
    """Apply the maps of one row one after the other; store the row before every chunk and after the last one."""
    memory, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, R)
    inside = columns < r
    square = columns[:, None] * r + columns[None, :]
    s = tl.load(state + (memory * r + row) * r + columns, inside, 0.0)  # [R]
    for chunk in range(chunks):
        here = (memory * chunks + chunk) * r + row
        m = tl.load(matrix + here * r * r + square, inside[:, None] & inside[None, :], 0.0)
        b = tl.load(offset + here * r + columns, inside, 0.0)
        tl.store(starts + here * r + columns, s, inside)
        s = tl.sum(m * s[None, :], 1) + b
    tl.store(end + (memory * r + row) * r + columns, s, inside)


@triton.jit
def read_chunks(
    q, k, v, keep, erase, write, starts, reads,
    length, chunks, r, R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Read all rows of a memory over one chunk, from the state at its start."""
    place = tl.program_id(0).to(tl.int64)
    memory, chunk = place // chunks, place % chunks
    columns = tl.arange(0, R)
    inside = columns < r
    square = columns[:, None] * r + columns[None, :]
    s = tl.load(starts + place * r * r + square, inside[:, None] & inside[None, :], 0.0)  # [R, R]
    for t in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, length)):
        at = (memory * length + t) * r + columns
        query = tl.load(q + at, inside, 0.0)
        tl.store(reads + at, tl.sum(s * query[None, :], 1), inside)
        s = advance(s, k, v, keep, erase, write, at, inside)


@triton.jit
def advance(s, k, v, keep, erase, write, at, inside):
    """The state `[R, R]` after the token at `at`; elements that are not `inside` stay unchanged."""
    key, kept = tl.load(k + at, inside, 0.0), tl.load(keep + at, inside, 1.0)
    written = tl.load(write + at, inside, 0.0) * tl.load(v + at, inside, 0.0)
    change = written - tl.load(erase + at, inside, 0.0) * tl.sum(s * key[None, :], 1)  # [R]
    return kept[:, None] * s + change[:, None] * key[None, :]

"""Kernels of the chunk-parallel rule, backward; see `chunks.py` for the shapes.

Over a chunk, the gradient d of a row becomes `M^T d + c`, with the M of the forward pass. So (1) the c of all chunks are
computed in parallel, (2) the gradients of the states after the chunks follow one after the other, from the last chunk to the
first, and (3) the gradients of all tokens are computed in parallel. For this, the states within a chunk are recomputed from its
start, a few at a time, as many as fit into the registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltamem.rule.gpu.chunks import advance


@triton.jit
def chunk_offsets(
    q, k, keep, erase, d_reads, offset,
    length, chunks, r, R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The share of one chunk's reads in the gradient of the state before it: `[memories, chunks, r, r]`."""
    place = tl.program_id(0).to(tl.int64)
    memory, chunk = place // chunks, place % chunks
    columns = tl.arange(0, R)
    inside = columns < r
    d = tl.zeros((R, R), tl.float32)
    for back in range(CHUNK):
        t = chunk * CHUNK + CHUNK - 1 - back
        at, there = (memory * length + t) * r + columns, columns < tl.where(t < length, r, 0)
        query, key = tl.load(q + at, there, 0.0), tl.load(k + at, there, 0.0)
        kept, d_read = tl.load(keep + at, there, 1.0), tl.load(d_reads + at, there, 0.0)
        d_predicted = -tl.load(erase + at, there, 0.0) * tl.sum(d * key[None, :], 1)
        d = kept[:, None] * d + d_read[:, None] * query[None, :] + d_predicted[:, None] * key[None, :]
    square = columns[:, None] * r + columns[None, :]
    tl.store(offset + place * r * r + square, d, inside[:, None] & inside[None, :])


@triton.jit
def chunk_ends(matrix, offset, d_end, ends, d_state, chunks, r, R: tl.constexpr):
    """The gradients of one row of the states after every chunk, and of the state before the first chunk."""
    memory, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, R)
    inside = columns < r
    square = columns[:, None] * r + columns[None, :]
    d = tl.load(d_end + (memory * r + row) * r + columns, inside, 0.0)  # [R]
    for back in range(chunks):
        here = (memory * chunks + chunks - 1 - back) * r + row
        m = tl.load(matrix + here * r * r + square, inside[:, None] & inside[None, :], 0.0)
        c = tl.load(offset + here * r + columns, inside, 0.0)
        tl.store(ends + here * r + columns, d, inside)
        d = tl.sum(m * d[:, None], 0) + c
    tl.store(d_state + (memory * r + row) * r + columns, d, inside)


@triton.jit
def token_gradients(
    q, k, v, keep, erase, write, starts, ends, d_reads,
    d_q, d_k, d_v, d_keep, d_erase, d_write,
    length, chunks, r, R: tl.constexpr, CHUNK: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The gradients of one chunk's tokens, from `HELD` states at a time; HELD divides CHUNK."""
    place = tl.program_id(0).to(tl.int64)
    memory, chunk = place // chunks, place % chunks
    columns = tl.arange(0, R)
    inside = columns < r
    square = columns[:, None] * r + columns[None, :]
    whole = inside[:, None] & inside[None, :]
    d = tl.load(ends + place * r * r + square, whole, 0.0)  # [R, R]
    steps = tl.arange(0, HELD)[:, None, None]
    for back in range(CHUNK // HELD):
        first = chunk * CHUNK + CHUNK - HELD - back * HELD
        s = tl.load(starts + place * r * r + square, whole, 0.0)
        for t in range(chunk * CHUNK, tl.minimum(first, length)):
            s = advance(s, k, v, keep, erase, write, (memory * length + t) * r + columns, inside)
        held = tl.zeros((HELD, R, R), tl.float32)
        for step in range(HELD):
            held = tl.where(steps == step, s[None, :, :], held)
            at = (memory * length + first + step) * r + columns
            s = advance(s, k, v, keep, erase, write, at, columns < tl.where(first + step < length, r, 0))
        for step_back in range(HELD):
            step = HELD - 1 - step_back
            s = tl.sum(tl.where(steps == step, held, 0.0), 0)
            at, there = (memory * length + first + step) * r + columns, columns < tl.where(first + step < length, r, 0)
            query, key, value = tl.load(q + at, there, 0.0), tl.load(k + at, there, 0.0), tl.load(v + at, there, 0.0)
            kept, erased, written = (
                tl.load(keep + at, there, 1.0),
                tl.load(erase + at, there, 0.0),
                tl.load(write + at, there, 0.0),
            )
            d_read = tl.load(d_reads + at, there, 0.0)
            predicted, d_change = tl.sum(s * key[None, :], 1), tl.sum(d * key[None, :], 1)
            change, d_predicted = written * value - erased * predicted, -erased * d_change
            tl.store(d_q + at, tl.sum(s * d_read[:, None], 0), there)
            tl.store(d_k + at, tl.sum(d * change[:, None] + s * d_predicted[:, None], 0), there)
            tl.store(d_v + at, written * d_change, there)
            tl.store(d_keep + at, tl.sum(d * s, 1), there)
            tl.store(d_erase + at, -predicted * d_change, there)
            tl.store(d_write + at, value * d_change, there)
            d = kept[:, None] * d + d_read[:, None] * query[None, :] + d_predicted[:, None] * key[None, :]

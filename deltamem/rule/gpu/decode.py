"""The decode step on a GPU: one launch from the hidden states to the reads, and one from the reads to a corrected output.

Shapes: in registers, the width r of a state is padded to R, the next power of two, as are the reads of all states to ROWS.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from deltamem.rule.gates import EPSILON, Gating
from deltamem.rule.gpu.rule import on_device_of
from deltamem.rule.gpu.step import step, unit

# The block sizes of a program: elements of the weight that are loaded at a time, and features of an output.
WEIGHTS, FEATURES = 2048, 512


def read_and_write_token(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    state: Tensor,
    projected: Tensor,
    values: Tensor,
    end: Tensor,
    valid: Tensor | None,
    gating: Gating,
    writes: bool,
) -> None:
    """Project hidden states, read the memories and, if `writes`, write them. All tensors are contiguous and on a CUDA device.

    Args:
        hidden: `[batch, 1, width]`, of any floating-point dtype.
        weight, bias: the map from a hidden state to its projections, `[rows, width]`, and the bias of the gates.
        state: the states before the token, `[batch, num_states, r, r]`.
        projected: output, the projections `[batch, 1, rows]`.
        values: output, the reads `[batch, 1, num_states * r]`.
        end: output, the states after the token.
        valid: `[batch, 1]`, boolean, False for padding; None if every token is real.
        gating: the layout of the projections.
        writes: whether the tokens are written; if not, the projections are the rows q alone.
    """
    R = triton.next_power_of_2(gating.r)
    with on_device_of(state):
        _token[(len(state), gating.num_states)](
            hidden, weight, bias, state, projected, values, end, valid,
            hidden.shape[2], projected.shape[2], gating.num_states, gating.r, gating.gate_rows,
            writes, R, max(16, WEIGHTS // R), gating.decay, gating.decay_first, EPSILON,
        )  # fmt: skip


def correct_token(output: Tensor, values: Tensor, weight: Tensor, scale: float) -> None:
    """Add `scale` times a linear map of the reads to a projection's output, in place. All tensors are contiguous, on CUDA.

    Args:
        output: `[batch, 1, features]`, of any floating-point dtype.
        values: the reads, `[batch, 1, rows]`.
        weight: `[features, rows]`.
        scale: factor of the correction.
    """
    (features, rows), batch = weight.shape, len(values)
    with on_device_of(values):
        _correct[(batch, triton.cdiv(features, FEATURES))](
            output, values, weight, scale, features, rows, triton.next_power_of_2(rows), FEATURES
        )


@triton.jit
def _token(
    hidden, weight, bias, state, projected, values, end, mask,
    width, rows, states, r, gate_rows,
    WRITES: tl.constexpr, R: tl.constexpr, WIDTH: tl.constexpr,
    DECAY: tl.constexpr, DECAY_FIRST: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    row, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, R)
    inside = columns < r
    height = states * r
    token, own = hidden + row * width, number * r + columns
    here = row * states + number
    square = here * r * r + columns[:, None] * r + columns[None, :]
    whole = inside[:, None] & inside[None, :]
    s = tl.load(state + square, whole, 0.0)  # [R, R]
    out = projected + row * rows
    counts = True
    if mask is not None:
        counts = tl.load(mask + row) != 0
    query = _project(token, weight, own, inside, width, R, WIDTH)  # [R]
    tl.store(out + own, query, inside)
    read = tl.sum(s * unit(query, EPSILON)[None, :], 1)  # [R]
    tl.store(values + here * r + columns, tl.where(counts, read, 0.0), inside)
    if WRITES:
        key = _project(token, weight, height + own, inside, width, R, WIDTH)
        value = _project(token, weight, 2 * height + own, inside, width, R, WIDTH)
        tl.store(out + height + own, key, inside)
        tl.store(out + 2 * height + own, value, inside)
        gate = number * gate_rows + columns % gate_rows  # one per row of the state, or a single one for all rows
        gates, mine = 3 * height + gate, columns < gate_rows
        logit = _project(token, weight, gates, inside, width, R, WIDTH)
        tl.store(out + gates, logit, mine)
        beta_logit = logit + tl.load(bias + gate, inside, 0.0)
        keep_logit = beta_logit
        if DECAY == "learned":
            further = states * gate_rows
            logit = _project(token, weight, gates + further, inside, width, R, WIDTH)
            tl.store(out + gates + further, logit, mine)
            keep_logit = logit + tl.load(bias + gate + further, inside, 0.0)
        after, _ = step(s, unit(key, EPSILON), value, beta_logit, keep_logit, R, DECAY, DECAY_FIRST)
        tl.store(end + square, tl.where(counts, after, s), whole)
    else:
        tl.store(end + square, s, whole)


@triton.jit
def _project(token, weight, rows, inside, width, R: tl.constexpr, WIDTH: tl.constexpr):
    """The product of the given rows of the weight and the hidden state: `[R]`."""
    columns = tl.arange(0, WIDTH)
    total = tl.zeros((R,), tl.float32)
    for first in range(0, width, WIDTH):
        there = first + columns < width
        x = tl.load(token + first + columns, there, 0.0).to(tl.float32)  # [WIDTH]
        # [R, WIDTH]
        w = tl.load(weight + rows[:, None] * width + first + columns[None, :], inside[:, None] & there[None, :], 0.0)
        total += tl.sum(w * x[None, :], 1)
    return total


@triton.jit
def _correct(output, values, weight, scale, features, rows, ROWS: tl.constexpr, FEATURES: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns, at = tl.arange(0, ROWS), block * FEATURES + tl.arange(0, FEATURES)
    inside, there = columns < rows, at < features
    x = tl.load(values + row * rows + columns, inside, 0.0)  # [ROWS]
    w = tl.load(weight + at[:, None] * rows + columns[None, :], there[:, None] & inside[None, :], 0.0)  # [FEATURES, ROWS]
    place = output + row * features + at
    y = tl.load(place, there, 0.0)  # [FEATURES]
    tl.store(place, (y.to(tl.float32) + scale * tl.sum(w * x[None, :], 1)).to(y.dtype), there)

"""One decode step, from the projections of a token to its reads, in one launch.

Shapes: in registers, the width r of a state is padded to R, the next power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltamem.rule.gates import EPSILON, Gating
from deltamem.rule.gpu.rule import on_device_of, warps


def triton_step(
    projected: Tensor, gate_bias: Tensor, state: Tensor, mask: Tensor | None, gating: Gating
) -> tuple[Tensor, Tensor, Tensor]:
    """`deltamem.rule.delta_memory` for one token per row, without gradients; CUDA tensors, with a boolean mask."""
    projected, gate_bias, state = projected.contiguous(), gate_bias.contiguous(), state.contiguous()
    mask = None if mask is None else mask.contiguous()
    batch, _, rows = projected.shape
    states, r = gating.num_states, gating.r
    reads, end = projected.new_empty(batch, 1, states * r), torch.empty_like(state)
    opened = projected.new_empty(batch, states)
    R = triton.next_power_of_2(r)
    with on_device_of(state):
        _step[(batch, states)](
            projected, gate_bias, state, reads, end, opened, mask, rows, states, r, gating.gate_rows,
            R, gating.decay, gating.decay_first, EPSILON, num_warps=warps(R * R),
        )  # fmt: skip
    return reads, end, opened


@triton.jit
def _step(
    projected, bias, state, reads, end, opened, mask, rows, states, r, gate_rows,
    R: tl.constexpr, DECAY: tl.constexpr, DECAY_FIRST: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    row, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, R)
    inside = columns < r
    height = states * r
    token = projected + row * rows + number * r + columns
    query = unit(tl.load(token, inside, 0.0), EPSILON)  # [R]
    key = unit(tl.load(token + height, inside, 0.0), EPSILON)
    value = tl.load(token + 2 * height, inside, 0.0)

    gate = number * gate_rows + columns % gate_rows  # one per row of the state, or a single one for all rows
    logits = projected + row * rows + 3 * height
    beta_logit = tl.load(logits + gate, inside, 0.0) + tl.load(bias + gate, inside, 0.0)
    keep_logit = beta_logit
    if DECAY == "learned":
        gate += states * gate_rows
        keep_logit = tl.load(logits + gate, inside, 0.0) + tl.load(bias + gate, inside, 0.0)

    here = row * states + number
    square = here * r * r + columns[:, None] * r + columns[None, :]
    whole = inside[:, None] & inside[None, :]
    s = tl.load(state + square, whole, 0.0)  # [R, R]
    read = tl.sum(s * query[None, :], 1)  # [R]
    after, beta = step(s, key, value, beta_logit, keep_logit, R, DECAY, DECAY_FIRST)  # [R, R], [R]
    gates = tl.where(inside, beta, 0.0)
    if mask is not None:  # select instead of multiply: a masked value may be NaN
        counts = tl.load(mask + row) != 0
        read, after, gates = tl.where(counts, read, 0.0), tl.where(counts, after, s), tl.where(counts, gates, 0.0)
    tl.store(reads + here * r + columns, read, inside)
    tl.store(end + square, after, whole)
    tl.store(opened + here, tl.sum(gates, 0) / r)


@triton.jit
def step(s, key, value, beta_logit, keep_logit, R: tl.constexpr, DECAY: tl.constexpr, DECAY_FIRST: tl.constexpr):
    """The state `[R, R]` after a token, and its write gates `[R]`; `keep_logit` matters only if the decay is learned."""
    beta = _logistic(beta_logit)
    if DECAY == "learned":
        kept = _logistic(keep_logit)
    elif DECAY == "coupled":
        kept = 1.0 - beta
    else:
        kept = tl.full((R,), 1.0, tl.float32)
    erased = kept * beta if DECAY_FIRST else beta
    change = beta * value - erased * tl.sum(s * key[None, :], 1)  # [R]
    return kept[:, None] * s + change[:, None] * key[None, :], beta


@triton.jit
def unit(x, EPSILON: tl.constexpr):
    """tanh, normalised to unit length as in `deltamem.rule.gates`."""
    y = _tanh(x)
    length = tl.sqrt(tl.sum(y * y, 0))
    return y / tl.where(length < EPSILON, EPSILON, length)


@triton.jit
def _logistic(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    """Near zero a polynomial (a near-minimax fit), because exp would lose digits there; elsewhere from exp."""
    square, size = x * x, tl.abs(x)
    tail = -0.33333284 + square * (0.1333149 + square * (-0.053743497 + square * (0.020650586 - square * 0.005717044)))
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, x + x * square * tail, tl.where(x > 0.0, far, -far))

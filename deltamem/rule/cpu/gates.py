"""From a layer's projections to the queries, keys, values and gates of one chunk, and back for the gradients.

Scratch arrays are `[tokens * width]`, as in `chunk.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deltamem.rule.cpu.chunk import ERASE, KEEP, WRITE
from deltamem.rule.cpu.compile import part
from deltamem.rule.cpu.elementary import logistic, tanh

COUPLED, LEARNED, NONE = range(3)
DECAYS = {"coupled": COUPLED, "learned": LEARNED, "none": NONE}
_ZERO, _ONE = np.float32(0), np.float32(1)
_EPSILON = np.float32(1e-6)  # the smallest length by which a query or key is divided


@part
def places(rows: Any, r: Any, states: Any, gate_rows: Any, number: Any, reads: Any) -> Any:
    """The offsets of one state's q, k, v, β and λ in a token's projections, `[rows]`; these have q only if `reads`."""
    height = states * r
    keys = height if reads else 0
    gates = keys + 2 * height
    return (
        number * r,
        keys + number * r,
        keys + height + number * r,
        gates + number * gate_rows,
        gates + (states + number) * gate_rows,
    )


@part
def gather(source: Any, start: Any, rows: Any, real: Any, target: Any, tokens: Any, count: Any, width: Any, step: Any) -> None:
    """Copy `count` columns of every token to a scratch array, zeros for padding; a step of 0 repeats the first column."""
    for t in range(tokens):
        if real[t]:
            for i in range(count):
                target[t * width + i] = source[start + t * rows + i * step]
            for i in range(count, width):
                target[t * width + i] = _ZERO
        else:
            for i in range(width):
                target[t * width + i] = _ZERO


@part
def unit(x: Any, lengths: Any, tokens: Any, width: Any) -> None:
    """Apply tanh and normalise every token's `width` numbers to unit length, in place; `lengths` receives the divisors."""
    for m in range(tokens * width):
        x[m] = tanh(x[m])
    for t in range(tokens):
        squares = _ZERO
        for i in range(width):
            squares += x[t * width + i] * x[t * width + i]
        length = np.sqrt(squares)
        lengths[t] = _EPSILON if length < _EPSILON else length  # max would drop a NaN
    for t in range(tokens):
        scale = _ONE / lengths[t]
        for i in range(width):
            x[t * width + i] *= scale


@part
def unit_backward(x: Any, lengths: Any, gradient: Any, tokens: Any, width: Any) -> None:
    """Turn the gradient of `unit`'s result x into the gradient of its input, in place."""
    for t in range(tokens):
        along = _ZERO
        for i in range(width):
            along += x[t * width + i] * gradient[t * width + i]
        along = along if lengths[t] > _EPSILON else _ZERO
        for i in range(width):
            m = t * width + i
            before = x[m] * lengths[t]  # the result of tanh
            gradient[m] = (_ONE - before * before) * (gradient[m] - along * x[m]) / lengths[t]


@part
def open_gates(parts: Any, bias: Any, real: Any, tokens: Any, width: Any, decay: Any, decay_first: Any) -> None:
    """Turn logits into gates in place: WRITE holds the logits of β on entry, and KEEP those of λ.

    Args:
        bias: `[2, width]`, of β and λ.
        real: `[tokens]`; any other token becomes the rule's identity.
    """
    keep, erase, write = parts[KEEP], parts[ERASE], parts[WRITE]
    for t in range(tokens):
        for i in range(width):
            write[t * width + i] += bias[0, i]
    for m in range(tokens * width):
        write[m] = logistic(write[m])
    if decay == LEARNED:
        for t in range(tokens):
            for i in range(width):
                keep[t * width + i] += bias[1, i]
        for m in range(tokens * width):
            keep[m] = logistic(keep[m])
    elif decay == COUPLED:
        for m in range(tokens * width):
            keep[m] = _ONE - write[m]
    else:
        keep[: tokens * width] = _ONE
    for m in range(tokens * width):
        erase[m] = keep[m] * write[m] if decay_first else write[m]
    for t in range(tokens):
        if not real[t]:
            for i in range(width):
                keep[t * width + i], erase[t * width + i], write[t * width + i] = _ONE, _ZERO, _ZERO


@part
def open_gates_backward(
    parts: Any, gradients: Any, extra: Any, real: Any, tokens: Any, width: Any, decay: Any, decay_first: Any
) -> None:
    """Turn the gradients of the gates into those of the logits, in place: of β at WRITE and of λ at KEEP.

    Args:
        extra: an additional gradient for every β of a real token.
    """
    keep, write = parts[KEEP], parts[WRITE]
    d_keep, d_erase, d_write = gradients[KEEP], gradients[ERASE], gradients[WRITE]
    for t in range(tokens):
        for m in range(t * width, (t + 1) * width):
            d_beta = d_write[m] + extra + (d_erase[m] * keep[m] if decay_first else d_erase[m])
            d_kept = d_keep[m] + (d_erase[m] * write[m] if decay_first else _ZERO)
            d_beta -= d_kept if decay == COUPLED else _ZERO
            d_write[m] = d_beta * write[m] * (_ONE - write[m]) if real[t] else _ZERO
            d_keep[m] = d_kept * keep[m] * (_ONE - keep[m]) if real[t] else _ZERO


@part
def scatter(source: Any, target: Any, start: Any, rows: Any, real: Any, tokens: Any, count: Any, width: Any) -> None:
    """Copy a scratch array to `count` columns of every token, zeros for padding."""
    for t in range(tokens):
        for i in range(count):
            target[start + t * rows + i] = source[t * width + i] if real[t] else _ZERO


@part
def scatter_gate(
    gradient: Any, target: Any, start: Any, rows: Any, bias: Any, tokens: Any, r: Any, gate_rows: Any, width: Any
) -> None:
    """Copy the gradient of one gate's logits to its columns, and add its sum over the tokens to that of the bias.

    If all rows of a state share a gate, its gradient is the sum over the rows.
    """
    if gate_rows != r:
        for t in range(tokens):
            for i in range(1, r):
                gradient[t * width] += gradient[t * width + i]
    for i in range(gate_rows):
        whole = _ZERO
        for t in range(tokens):
            target[start + t * rows + i] = gradient[t * width + i]
            whole += gradient[t * width + i]
        bias[i] += whole

"""One token of one memory, from its hidden state to the reads, and from the reads to a corrected output."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from deltamem.rule.cpu.compile import entry, floats, part
from deltamem.rule.cpu.gated import _forward
from deltamem.rule.cpu.gates import DECAYS
from deltamem.rule.cpu.lanes import LANES, load, spread, total
from deltamem.rule.gates import Gating

_ZERO = np.float32(0)


@cache
def token_settings(gating: Gating, writes: bool) -> tuple[int, ...]:
    """The settings of `read_and_write_token`."""
    rows = gating.query_rows + (gating.write_rows if writes else 0)
    settings = (DECAYS[gating.decay], int(gating.decay_first), int(writes))
    return rows, gating.r, gating.num_states, gating.gate_rows, *settings


@part
def _dot(left: Any, at: Any, right: Any, count: Any) -> Any:
    """The inner product of `left[at:]` and `right`, `count` numbers of each."""
    whole = count // LANES * LANES
    sums = spread(_ZERO)
    for i in range(0, whole, LANES):
        sums += load(left, at + i) * load(right, i)
    rest = total(sums)
    for i in range(whole, count):
        rest += left[at + i] * right[i]
    return rest


@entry
def read_and_write_token(
    weight: int, bias: int, state: int, projected: int, reads: int, end: int, width: int,
    rows: int, r: int, states: int, gate_rows: int, decay: int, decay_first: int, writing: int, hidden: int,
) -> None:  # fmt: skip
    """Project a hidden state, read the memory for it and, if it writes, write it; all arrays are given by their addresses.

    Args:
        weight, bias: the map from the hidden state to the projections, `[rows, width]`, and the gates' bias.
        state: the states before the token.
        projected, reads, end: filled in: the projections `[rows]`, the reads, and the states after the token.
        width: of the hidden state.
        rows, r, states, gate_rows, decay, decay_first, writing: see `token_settings`.
        hidden: the hidden state, `[width]`.
    """
    source, matrix = carray(floats(hidden), width), carray(floats(weight), rows * width)
    target, opened = carray(floats(projected), rows), np.empty(states, np.float32)
    for row in range(rows):
        target[row] = _dot(matrix, row * width, source, width)
    _forward(
        projected, bias, state, reads, end, opened.ctypes.data, 0, 0,
        1, rows, r, states, gate_rows, decay, decay_first, 1, writing, 0, states,
    )  # fmt: skip


@entry
def correct_token(reads: int, weight: int, rows: int, features: int, scale: float, output: int) -> None:
    """Add `scale` times what a linear map makes of the reads to a projection's output, in place; arrays as above.

    Args:
        reads: `[rows]`. weight: `[features, rows]`. output: `[features]`.
        rows, features, scale: see above.
    """
    source, matrix, target = (
        carray(floats(reads), rows),
        carray(floats(weight), rows * features),
        carray(floats(output), features),
    )
    factor = np.float32(scale)
    for feature in range(features):
        target[feature] += factor * _dot(matrix, feature * rows, source, rows)

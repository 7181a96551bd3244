"""One token of one memory, from its hidden state to the reads, and from the reads to a corrected output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from deltamem.rule.cpu.compile import entry, floats, integers, part
from deltamem.rule.cpu.gated import _forward
from deltamem.rule.cpu.gates import DECAYS
from deltamem.rule.cpu.lanes import LANES, load, spread, total
from deltamem.rule.gates import Gating

# A layer's row of the table that its calls read: addresses, then sizes and settings, then each correction's address and width.
WEIGHT, BIAS, STATE, PROJECTED, READS, END = range(6)
WIDTH, ROWS, R, STATES, GATE_ROWS, DECAY, DECAY_FIRST, WRITING = range(6, 14)
CORRECTIONS = 14

_ZERO = np.float32(0)
_FLOAT_BYTES = 4


def token_table(
    entrances: Sequence[Tensor], biases: Sequence[Tensor], corrections: Sequence[Sequence[Tensor]], gating: Gating, writes: bool
) -> np.ndarray[Any, Any]:
    """What the calls of all layers have in common at every token: `[layers, columns]`, int64.

    Args:
        entrances: of each layer the map from the hidden state to the projections, `[rows, width]`.
        biases: of each layer, of its gates.
        corrections: of each layer the maps from the reads to the outputs of projections.
        gating: what the rows mean.
        writes: whether the tokens are written; if not, there are the rows q alone.
    """
    rows = gating.query_rows + (gating.write_rows if writes else 0)
    settings = (gating.r, gating.num_states, gating.gate_rows, DECAYS[gating.decay], gating.decay_first, writes)
    table = np.zeros((len(entrances), CORRECTIONS + 2 * max(map(len, corrections))), np.int64)
    reads = gating.query_rows
    sizes = _FLOAT_BYTES * np.array((rows, reads, reads * gating.r))
    for layer, (entrance, bias, maps) in enumerate(zip(entrances, biases, corrections, strict=True)):
        row = table[layer]
        row[PROJECTED : END + 1] = layer * sizes  # where the layer's part begins
        row[WEIGHT], row[BIAS] = entrance.data_ptr(), bias.data_ptr()
        row[WIDTH:CORRECTIONS] = (entrance.shape[1], rows, *settings)
        row[CORRECTIONS : CORRECTIONS + 2 * len(maps)] = [*chain.from_iterable((x.data_ptr(), len(x)) for x in maps)]
    return table


def filled(
    table: np.ndarray[Any, Any], states: Sequence[Tensor], projected: Tensor, reads: Tensor, end: Tensor
) -> np.ndarray[Any, Any]:
    """A copy of a table for one token.

    Args:
        states: of each layer before the token.
        projected, reads, end: filled in by the calls: the projections `[layers, 1, 1, rows]`, the reads
            `[layers, 1, 1, states * r]` and the states after the token `[layers, 1, states, r, r]`.
    """
    table = table.copy()
    table[:, STATE] = [*map(Tensor.data_ptr, states)]
    table[:, PROJECTED : END + 1] += (projected.data_ptr(), reads.data_ptr(), end.data_ptr())
    return table


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
def read_and_write_token(row: int, hidden: int) -> None:
    """Project a hidden state, read the memory for it and, if it writes, write it.

    Args:
        row: address of the layer's row of the table.
        hidden: address of the hidden state, `[width]`.
    """
    given = carray(integers(row), CORRECTIONS)
    width, rows, states = given[WIDTH], given[ROWS], given[STATES]
    source, matrix = carray(floats(hidden), width), carray(floats(given[WEIGHT]), rows * width)
    target, opened = carray(floats(given[PROJECTED]), rows), np.empty(states, np.float32)
    for i in range(rows):
        target[i] = _dot(matrix, i * width, source, width)
    _forward(
        given[PROJECTED], given[BIAS], given[STATE], given[READS], given[END], opened.ctypes.data, 0, 0,
        1, rows, given[R], states, given[GATE_ROWS], given[DECAY], given[DECAY_FIRST], 1, given[WRITING], 0, states,
    )  # fmt: skip


@entry
def correct_token(row: int, number: int, scale: float, output: int) -> None:
    """Add `scale` times what a correction makes of the reads to a projection's output, in place.

    Args:
        row: address of the layer's row of the table.
        number: which of the layer's corrections.
        scale: see above.
        output: address of the output.
    """
    column = CORRECTIONS + 2 * number
    given = carray(integers(row), column + 2)
    rows, features = given[STATES] * given[R], given[column + 1]
    source, matrix = carray(floats(given[READS]), rows), carray(floats(given[column]), rows * features)
    target, factor = carray(floats(output), features), np.float32(scale)
    for feature in range(features):
        target[feature] += factor * _dot(matrix, feature * rows, source, rows)

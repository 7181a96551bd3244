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
from deltamem.rule.cpu.lanes import LANES, load, spread, store, total, totals
from deltamem.rule.gates import Gating

# A layer's row of the table that its calls read: addresses, then where its part of what all layers share begins, then sizes and
# settings, then each correction's address and width.
WEIGHT, BIAS, PROJECTED, READS, STATE = range(5)
WIDTH, ROWS, R, STATES, GATE_ROWS, DECAY, DECAY_FIRST, WRITING = range(5, 13)
CORRECTIONS = 13

_ZERO = np.float32(0)
_FLOAT_BYTES = 4


class Table:
    """What the calls of all layers have in common at every token of a single memory.

    Args:
        entrances: of each layer the map from the hidden state to the projections, `[rows, width]`.
        biases: of each layer, of its gates.
        corrections: of each layer the maps from the reads to the outputs of projections.
        gating: what the rows mean.
        writes: whether the tokens are written; if not, there are the rows q alone.

    Attributes:
        rows: of each layer the address of its row.
    """

    def __init__(
        self,
        entrances: Sequence[Tensor],
        biases: Sequence[Tensor],
        corrections: Sequence[Sequence[Tensor]],
        gating: Gating,
        writes: bool,
    ) -> None:
        rows, reads = gating.query_rows + (gating.write_rows if writes else 0), gating.query_rows
        settings = (gating.r, gating.num_states, gating.gate_rows, DECAYS[gating.decay], gating.decay_first, writes)
        sizes = _FLOAT_BYTES * np.array((rows, reads, reads * gating.r))
        self._numbers = np.zeros((len(entrances), CORRECTIONS + 2 * max(map(len, corrections))), np.int64)
        for layer, (entrance, bias, maps) in enumerate(zip(entrances, biases, corrections, strict=True)):
            row = self._numbers[layer]
            row[WEIGHT], row[BIAS] = entrance.data_ptr(), bias.data_ptr()
            row[PROJECTED : STATE + 1] = layer * sizes
            row[WIDTH:CORRECTIONS] = (entrance.shape[1], rows, *settings)
            row[CORRECTIONS : CORRECTIONS + 2 * len(maps)] = [*chain.from_iterable((x.data_ptr(), len(x)) for x in maps)]
        self.rows = [row.ctypes.data for row in self._numbers]


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


@part
def _map(matrix: Any, rows: Any, columns: Any, source: Any, target: Any) -> None:
    """A matrix times a vector: `rows` sums of `columns` products.

    The matrix comes from memory, so it is read in four places at once: each waits for its own.
    """
    quarter = rows // 4 if columns % LANES == 0 else 0
    for row in range(quarter):
        a = b = c = d = spread(_ZERO)
        at, step = row * columns, quarter * columns
        for i in range(0, columns, LANES):
            x = load(source, i)
            a += load(matrix, at + i) * x
            b += load(matrix, at + step + i) * x
            c += load(matrix, at + 2 * step + i) * x
            d += load(matrix, at + 3 * step + i) * x
        target[row], target[row + quarter] = total(a), total(b)
        target[row + 2 * quarter], target[row + 3 * quarter] = total(c), total(d)
    for row in range(4 * quarter, rows):
        target[row] = _dot(matrix, row * columns, source, columns)


@part
def _add_mapped(matrix: Any, rows: Any, columns: Any, source: Any, factor: Any, target: Any) -> None:
    """Add `factor` times a matrix times a vector to another: `rows` sums of `columns` products."""
    together = rows // LANES * LANES if columns % LANES == 0 else 0
    for row in range(0, together, LANES):
        a = b = c = d = e = f = g = h = spread(_ZERO)
        at = row * columns
        for i in range(0, columns, LANES):
            x = load(source, i)
            a += load(matrix, at + i) * x
            b += load(matrix, at + columns + i) * x
            c += load(matrix, at + 2 * columns + i) * x
            d += load(matrix, at + 3 * columns + i) * x
            e += load(matrix, at + 4 * columns + i) * x
            f += load(matrix, at + 5 * columns + i) * x
            g += load(matrix, at + 6 * columns + i) * x
            h += load(matrix, at + 7 * columns + i) * x
        store(target, row, load(target, row) + spread(factor) * totals(a, b, c, d, e, f, g, h))
    for row in range(together, rows):
        target[row] += factor * _dot(matrix, row * columns, source, columns)


@entry
def read_and_write_token(row: int, state: int, projected: int, reads: int, end: int, hidden: int) -> None:
    """Project a hidden state, read the memory for it and, if it writes, write it.

    Args:
        row: address of the layer's row of the table.
        state: address of the states of all layers before the token, `[layers, states, r, r]`.
        projected, reads, end: addresses of what is filled in, of all layers: the projections `[layers, rows]`, the reads
            `[layers, states * r]` and the states after the token.
        hidden: address of the hidden state, `[width]`.
    """
    given = carray(integers(row), CORRECTIONS)
    width, rows, states = given[WIDTH], given[ROWS], given[STATES]
    source, matrix = carray(floats(hidden), width), carray(floats(given[WEIGHT]), rows * width)
    own = projected + given[PROJECTED]
    target, opened = carray(floats(own), rows), np.empty(states, np.float32)
    _map(matrix, rows, width, source, target)
    _forward(
        own, given[BIAS], state + given[STATE], reads + given[READS], end + given[STATE], opened.ctypes.data, 0, 0,
        1, rows, given[R], states, given[GATE_ROWS], given[DECAY], given[DECAY_FIRST], 1, given[WRITING], 0, states,
    )  # fmt: skip


@entry
def correct_token(row: int, number: int, scale: float, reads: int, output: int) -> None:
    """Add `scale` times what a correction makes of the reads to a projection's output, in place.

    Args:
        row: address of the layer's row of the table.
        number: which of the layer's corrections.
        scale: what the correction is multiplied with.
        reads: address of the reads of all layers.
        output: address of the output.
    """
    column = CORRECTIONS + 2 * number
    given = carray(integers(row), column + 2)
    rows, features = given[STATES] * given[R], given[column + 1]
    source, matrix = carray(floats(reads + given[READS]), rows), carray(floats(given[column]), rows * features)
    target, factor = carray(floats(output), features), np.float32(scale)
    _add_mapped(matrix, features, rows, source, factor, target)

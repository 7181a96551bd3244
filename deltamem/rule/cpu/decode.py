"""The decode step on a CPU: from the hidden states to the reads, and from the reads to a corrected output.

Shapes: B batch rows, L layers. The buffers that all layers share are [B, L, ...].
"""

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

# The columns of a layer's row in the table: the addresses of its weights, the offsets of its part of the buffers that all
# layers share, the distances between the batch rows there, sizes and settings, then the address and the width of each
# correction.
WEIGHT, BIAS, PROJECTED, READS, STATE = range(5)
PROJECTED_STEP, READS_STEP, STATE_STEP = range(5, 8)
WIDTH, ROWS, R, STATES, GATE_ROWS, DECAY, DECAY_FIRST, WRITING = range(8, 16)
CORRECTIONS = 16

_ZERO = np.float32(0)
_FLOAT_BYTES = 4


class Table:
    """The arguments of all layers' calls that are the same for every token.

    Args:
        entrances: per layer, the map from the hidden state to the projections, `[rows, width]`.
        biases: per layer, the bias of its gates.
        corrections: per layer, the maps from the reads to the outputs of projections.
        gating: the layout of the projections.
        writes: whether the tokens are written; if not, the projections are the rows q alone.

    Attributes:
        rows: per layer, the address of its row in the table.
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
            row[PROJECTED_STEP : STATE_STEP + 1] = len(entrances) * sizes
            row[WIDTH:CORRECTIONS] = (entrance.shape[1], rows, *settings)
            row[CORRECTIONS : CORRECTIONS + 2 * len(maps)] = [*chain.from_iterable((x.data_ptr(), len(x)) for x in maps)]
        self.rows = [row.ctypes.data for row in self._numbers]


@part
def _dot(left: Any, at: Any, right: Any, count: Any) -> Any:
    """The inner product of `left[at : at + count]` and `right[:count]`."""
    whole = count // LANES * LANES
    sums = spread(_ZERO)
    for i in range(0, whole, LANES):
        sums += load(left, at + i) * load(right, i)
    rest = total(sums)
    for i in range(whole, count):
        rest += left[at + i] * right[i]
    return rest


@part
def _vector(address: Any, step: Any, number: Any, size: Any) -> Any:
    """A batch row's vector, from the address of the first row's and the distance between two rows in bytes."""
    return carray(floats(address + number * step), size)


@part
def _map(
    matrix: Any, rows: Any, columns: Any, batch: Any, source: Any, source_step: Any, target: Any, target_step: Any
) -> None:
    """Multiply a matrix `[rows, columns]` by a vector of each batch row.

    The loop is bound by memory latency, so it reads the matrix in four places at once, and each of them for all batch rows.

    Args:
        matrix, rows, columns: the matrix.
        batch: B.
        source, target: addresses of the first row's vectors.
        source_step, target_step: the distances between those of two rows, in bytes.
    """
    quarter = rows // 4 if columns % LANES == 0 else 0
    for row in range(quarter):
        at, step = row * columns, quarter * columns
        for n in range(batch):
            given, made = _vector(source, source_step, n, columns), _vector(target, target_step, n, rows)
            a = b = c = d = spread(_ZERO)
            for i in range(0, columns, LANES):
                x = load(given, i)
                a += load(matrix, at + i) * x
                b += load(matrix, at + step + i) * x
                c += load(matrix, at + 2 * step + i) * x
                d += load(matrix, at + 3 * step + i) * x
            made[row], made[row + quarter] = total(a), total(b)
            made[row + 2 * quarter], made[row + 3 * quarter] = total(c), total(d)
    for row in range(4 * quarter, rows):
        for n in range(batch):
            given = _vector(source, source_step, n, columns)
            _vector(target, target_step, n, rows)[row] = _dot(matrix, row * columns, given, columns)


@part
def _add_mapped(
    matrix: Any, rows: Any, columns: Any, factor: Any,
    batch: Any, source: Any, source_step: Any, target: Any, target_step: Any,
) -> None:  # fmt: skip
    """Add `factor` times the product of a matrix and a vector to another vector of each batch row; see `_map`."""
    together = rows // LANES * LANES if columns % LANES == 0 else 0
    for row in range(0, together, LANES):
        at = row * columns
        for n in range(batch):
            given, made = _vector(source, source_step, n, columns), _vector(target, target_step, n, rows)
            a = b = c = d = e = f = g = h = spread(_ZERO)
            for i in range(0, columns, LANES):
                x = load(given, i)
                a += load(matrix, at + i) * x
                b += load(matrix, at + columns + i) * x
                c += load(matrix, at + 2 * columns + i) * x
                d += load(matrix, at + 3 * columns + i) * x
                e += load(matrix, at + 4 * columns + i) * x
                f += load(matrix, at + 5 * columns + i) * x
                g += load(matrix, at + 6 * columns + i) * x
                h += load(matrix, at + 7 * columns + i) * x
            store(made, row, load(made, row) + spread(factor) * totals(a, b, c, d, e, f, g, h))
    for row in range(together, rows):
        for n in range(batch):
            given = _vector(source, source_step, n, columns)
            _vector(target, target_step, n, rows)[row] += factor * _dot(matrix, row * columns, given, columns)


@part
def _pass_row(given: Any, projected: Any, state: Any, reads: Any, end: Any, opened: Any) -> None:
    """Pass one token through a row's memories, all given by their addresses."""
    _forward(
        projected, given[BIAS], state, reads, end, opened.ctypes.data, 0, 0, 1, given[ROWS], given[R], given[STATES],
        given[GATE_ROWS], given[DECAY], given[DECAY_FIRST], 1, given[WRITING], 0, given[STATES],
    )  # fmt: skip


@entry
def read_and_write_token(row: int, batch: int, state: int, projected: int, reads: int, end: int, hidden: int) -> None:
    """Project one hidden state per batch row, read the layer's memories and, if the table says so, write them.

    Args:
        row: address of the layer's row in the table.
        batch: B.
        state: address of the states before the token, `[B, L, states, r, r]`.
        projected, reads, end: addresses of the outputs: the projections `[B, L, rows]`, the reads `[B, L, states * r]` and the
            states after the token.
        hidden: address of the hidden states, `[B, width]`.
    """
    given = carray(integers(row), CORRECTIONS)
    width, rows = given[WIDTH], given[ROWS]
    matrix, opened = carray(floats(given[WEIGHT]), rows * width), np.empty(given[STATES], np.float32)
    own, own_step = projected + given[PROJECTED], given[PROJECTED_STEP]
    _map(matrix, rows, width, batch, hidden, width * _FLOAT_BYTES, own, own_step)
    for b in range(batch):
        place = given[STATE] + b * given[STATE_STEP]
        _pass_row(given, own + b * own_step, state + place, reads + given[READS] + b * given[READS_STEP], end + place, opened)


@entry
def correct_token(row: int, number: int, batch: int, scale: float, reads: int, output: int) -> None:
    """Add a correction, computed from the reads, to a projection's output in place.

    Args:
        row: address of the layer's row in the table.
        number: index of the correction within the layer.
        batch: B.
        scale: factor of the correction.
        reads: address of the reads, `[B, L, states * r]`.
        output: address of the projection's output, `[B, features]`.
    """
    column = CORRECTIONS + 2 * number
    given = carray(integers(row), column + 2)
    rows, features = given[STATES] * given[R], given[column + 1]
    matrix, factor = carray(floats(given[column]), rows * features), np.float32(scale)
    source, source_step = reads + given[READS], given[READS_STEP]
    _add_mapped(matrix, features, rows, factor, batch, source, source_step, output, features * _FLOAT_BYTES)


@entry
def pass_slots(
    row: int, corrections: int, batch: int, slots: int, states: int, slot_step: int,
    projected: int, reads: int, hidden: int, output: int,
) -> None:  # fmt: skip
    """Like `read_and_write_token` for states that lie in slots, which are changed in place, with all corrections.

    Args:
        row: address of the layer's row in the table.
        corrections: how many the layer has.
        batch: B.
        slots: address of the rows' slots, int64 `[B]`.
        states: address of the states in slot 0, `[states, r, r]`.
        slot_step: the distance between two slots, in bytes.
        projected, reads: addresses of room for the projections `[B, rows]` and the reads `[B, states * r]`.
        hidden: address of the hidden states, `[B, width]`.
        output: address of the corrections, correction after correction, `[B, features]` each.
    """
    given = carray(integers(row), CORRECTIONS + 2 * corrections)
    width, rows, reading = given[WIDTH], given[ROWS], given[STATES] * given[R]
    matrix, opened = carray(floats(given[WEIGHT]), rows * width), np.empty(given[STATES], np.float32)
    rows_step, reads_step = rows * _FLOAT_BYTES, reading * _FLOAT_BYTES
    _map(matrix, rows, width, batch, hidden, width * _FLOAT_BYTES, projected, rows_step)
    for b in range(batch):
        state = states + carray(integers(slots), batch)[b] * slot_step
        _pass_row(given, projected + b * rows_step, state, reads + b * reads_step, state, opened)
    for number in range(corrections):
        column = CORRECTIONS + 2 * number
        features = given[column + 1]
        carray(floats(output), batch * features)[:] = _ZERO
        correction, step = carray(floats(given[column]), reading * features), features * _FLOAT_BYTES
        _add_mapped(correction, features, reading, np.float32(1), batch, reads, reads_step, output, step)
        output += batch * step

"""SlotTable: the keys and values of answers of different lengths, decoded together.

Transformers' continuous batching allocates attention only, and puts the tokens of all users in one row, which a memory refuses.
This table is an ordinary KV cache. Its rows end together, so each step appends one column; shorter rows are padded on the left.

Shapes: B rows in use, H key heads, C columns, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from deltamem.serve.caches import token_layers

# Columns and rows are allocated in multiples of these, so that the table is seldom copied.
COLUMNS, ROWS = 256, 4


class SlotLayer(DynamicLayer):
    """The keys and values of one attention layer, [rows, H, C, D], of which a part is in use."""

    def __init__(self, table: SlotTable) -> None:
        super().__init__()
        self._table = table
        nothing = torch.empty(0, dtype=torch.float32, device="cpu")  # replaced by tensors like the first row's
        self._keys, self._values = nothing, nothing
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append one column, and return the columns in use: [B, H, columns, D]."""
        rows, start, end = self._table.rows, self._table.start, self._table.end
        self._keys[:rows, :, end : end + 1] = key_states
        self._values[:rows, :, end : end + 1] = value_states
        return self._keys[:rows, :, start : end + 1], self._values[:rows, :, start : end + 1]

    def get_seq_length(self) -> int:
        """The number of columns in use."""
        return self._table.end - self._table.start

    def place(self, rows: int, columns: int, end: int) -> None:
        """Allocate another size, and move what is in use so that it ends at a column."""
        self._keys, self._values = (self._placed(tensor, rows, columns, end) for tensor in (self._keys, self._values))

    def put(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Fill a row with keys and values [1, H, tokens, D], so that they end where the others do."""
        if not self._keys.numel():
            shape = self._table.allocated
            self._keys = keys.new_zeros(shape[0], keys.shape[1], shape[1], keys.shape[3])
            self._values = values.new_zeros(shape[0], values.shape[1], shape[1], values.shape[3])
        end = self._table.end
        start = end - keys.shape[2]
        for target, source in ((self._keys, keys), (self._values, values)):
            target[row, :, :start] = 0
            target[row, :, start:end] = source[0]

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for tensor in (self._keys, self._values):
            tensor[target] = tensor[source]

    def _placed(self, tensor: Tensor, rows: int, columns: int, end: int) -> Tensor:
        table = self._table
        if not tensor.numel():
            return tensor
        placed = tensor.new_zeros(rows, tensor.shape[1], columns, tensor.shape[3])
        width = table.end - table.start
        placed[: table.rows, :, end - width : end] = tensor[: table.rows, :, table.start : table.end]
        return placed


class SlotTable:
    """The rows of the answers that are being decoded.

    Attributes:
        lengths: the number of tokens in each row.
        end: the column after the last one in use.
        allocated: the numbers of rows and columns that are allocated.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.end = 0
        self.allocated = (0, 0)
        self._layers: list[SlotLayer] = []

    @property
    def rows(self) -> int:
        """Number of rows in use."""
        return len(self.lengths)

    @property
    def start(self) -> int:
        """The first column in use."""
        return self.end - max(self.lengths, default=0)

    def cache(self) -> Cache:
        """The KV cache for a pass of one token per row. Make a new one for each pass: a pass leaves its memory in it."""
        return Cache(layers=[*self._layers])

    def inputs(self, tokens: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """The arguments of a pass that appends these tokens, one per row."""
        if self.end == self.allocated[1]:
            self._place(self.rows, max(self.lengths))
        width = self.end - self.start + 1
        mask = torch.zeros(self.rows, width, dtype=torch.long, device="cpu")
        for row, length in enumerate(self.lengths):
            mask[row, width - length - 1 :] = 1
        return {
            "input_ids": torch.tensor(tokens, dtype=torch.long, device=device)[:, None],  # [B, 1]
            "position_ids": torch.tensor(self.lengths, dtype=torch.long, device=device)[:, None],  # [B, 1]
            "attention_mask": mask.to(device),  # [B, columns + 1]
        }

    def advance(self) -> None:
        """Count the column that a pass appended."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def add(self, cache: Cache, tokens: int) -> None:
        """Add a row with the keys and values of a prompt."""
        sources = token_layers(cache)
        if not self._layers:
            self._layers = [SlotLayer(self) for _ in sources]
        row = self.rows
        if row == self.allocated[0] or tokens > self.end:
            self._place(row + 1, max(*self.lengths, tokens, 0))
        for layer, source in zip(self._layers, sources, strict=True):
            if source.keys is not None:  # a layer may use another's
                layer.put(row, source.keys, source.values)
        self.lengths.append(tokens)

    def remove(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        last = self.rows - 1
        if row != last:
            for layer in self._layers:
                layer.move(last, row)
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.end = 0

    def _place(self, rows: int, end: int) -> None:
        """Allocate the table again, for at least so many rows, which end at a column."""
        allocated = -(-rows // ROWS) * ROWS, -(-(end + COLUMNS) // COLUMNS) * COLUMNS
        for layer in self._layers:
            layer.place(*allocated, end)
        self.end, self.allocated = end, allocated

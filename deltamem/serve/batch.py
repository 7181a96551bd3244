"""Batch: the answers that are being decoded, one new token each per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache

from deltamem.memory.state import DeltaMemState
from deltamem.serve.caches import can_be_cut, new_cache
from deltamem.serve.slot_table import SlotTable
from deltamem.versions import CACHE


class Batch(Protocol):
    """The rows of the answers that are being decoded."""

    def add(self, cache: Cache, tokens: int, memory: DeltaMemState) -> None:
        """Add a row after the others.

        Args:
            cache: the keys and values of the row's prompt.
            tokens: number of tokens of the prompt.
            memory: the memory that the row reads, with one row; the prompt was read with it.
        """
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row, and return the logits of the next, `[rows, vocabulary]`."""
        ...

    def remove(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        ...


def new_batch(model: Any) -> Batch:
    """An empty batch; the rows are decoded together if the model keeps nothing but keys and values."""
    return JoinedRows(model) if can_be_cut(new_cache(model)) else SeparateRows(model)


class JoinedRows:
    """Decodes all rows in one pass."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._table = SlotTable()
        self._memories: list[DeltaMemState] = []
        self._stacked: DeltaMemState | None = None  # made again when a row was added or removed

    def add(self, cache: Cache, tokens: int, memory: DeltaMemState) -> None:
        """See `Batch.add`."""
        self._table.add(cache, tokens)
        self._memories.append(memory)
        self._stacked = None

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Batch.step`."""
        if self._stacked is None:
            self._stacked = DeltaMemState.stack(self._memories)
        with self._model.memory(self._stacked, write=False):
            output = self._model(
                **self._table.inputs(tokens, self._model.device), **{CACHE: self._table.cache()}, use_cache=True
            )
        self._table.advance()
        logits: Tensor = output.logits[:, -1]
        return logits

    def remove(self, row: int) -> None:
        """See `Batch.remove`."""
        self._table.remove(row)
        _remove(self._memories, row)
        self._stacked = None


class SeparateRows:
    """Decodes one row after the other, for models whose caches cannot be joined."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._rows: list[tuple[Cache, DeltaMemState]] = []

    def add(self, cache: Cache, tokens: int, memory: DeltaMemState) -> None:
        """See `Batch.add`."""
        self._rows.append((cache, memory))

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Batch.step`."""
        logits = []
        for token, (cache, memory) in zip(tokens, self._rows, strict=True):
            with self._model.memory(memory, write=False):
                output = self._model(
                    input_ids=torch.tensor([[token]], dtype=torch.long, device=self._model.device),
                    **{CACHE: cache},
                    use_cache=True,
                )
            logits.append(output.logits[0, -1])
        return torch.stack(logits)

    def remove(self, row: int) -> None:
        """See `Batch.remove`."""
        _remove(self._rows, row)


def _remove(rows: list[Any], row: int) -> None:
    rows[row] = rows[-1]
    rows.pop()

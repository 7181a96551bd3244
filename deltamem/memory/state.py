"""DeltaMemState: a memory as a value that can be kept, stacked, saved and passed on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from deltamem.memory.snapshot import Snapshot
from deltamem.memory.soundness import check_snapshot
from deltamem.memory.state_file import from_bytes, read_state_file, to_bytes, write_state_file


class DeltaMemState:
    """The memory of one or more users (batch rows): one float32 tensor per adapted attention module.

    Tensors are never changed in place: writing to a memory replaces them. So a clone, a row or a stack is independent of its
    source.

    Args:
        snapshot: the contents of the memory.
        fingerprint: identifies the adapter that wrote it; None if the memory is empty or was written during training.

    Raises:
        ValueError: the tensors have other shapes, dtypes or batch sizes, or NaN or infinite values.
    """

    def __init__(self, snapshot: Snapshot, fingerprint: str | None = None) -> None:
        check_snapshot(snapshot)
        self.snapshot = snapshot
        self.fingerprint = fingerprint

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The states by attention layer, `[batch, ...]` each; the delta rule's are `[batch, states, r, r]`."""
        return self.snapshot.states()

    @property
    def matrices(self) -> dict[str, Tensor]:
        """The states as matrices, for display: `[batch, matrices, rows, columns]` each; a vector is a matrix of one row."""
        return {
            name: tensor[:, None, None] if tensor.ndim == 2 else tensor.reshape(len(tensor), -1, *tensor.shape[-2:])
            for name, tensor in self.tensors.items()
        }

    @property
    def tokens(self) -> list[int]:
        """The number of tokens written to each row."""
        return self.snapshot.tokens.tolist()

    @property
    def batch_size(self) -> int:
        """Number of rows; each is an independent memory."""
        return self.snapshot.rows

    @property
    def nbytes(self) -> int:
        """Size of the states in bytes."""
        return sum(part.nbytes for part in self.snapshot.parts.values())

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, rows: int | slice) -> DeltaMemState:
        """One or more rows as an independent memory: `state[0]`, `state[1:3]`."""
        if not isinstance(rows, int | slice) or isinstance(rows, bool):
            raise TypeError(f"a memory's rows are given by an integer or a slice, got {rows!r}")
        if isinstance(rows, int):
            if not -self.batch_size <= rows < self.batch_size:
                raise IndexError(f"row {rows} of a memory with {self.batch_size} rows")
            rows = slice(rows, rows + 1 or None)
        if not len(range(*rows.indices(self.batch_size))):
            raise IndexError(f"{rows} selects no row of a memory with {self.batch_size} rows")
        return self._with(self.snapshot.map_rows(lambda tensor, dim: tensor[(slice(None),) * dim + (rows,)]))

    def __repr__(self) -> str:
        shape = tuple(next(iter(self.tensors.values())).shape)
        written = ", ".join(map(str, self.tokens[:4])) + (", ..." if len(self) > 4 else "")
        return f"DeltaMemState({len(self.tensors)} modules, {list(shape)} each, {self.nbytes} bytes; tokens written: {written})"

    @classmethod
    def stack(cls, states: Iterable[DeltaMemState]) -> DeltaMemState:
        """Combine memories of one adapter as the rows of one batch.

        Raises:
            ValueError: no memory was given, or the memories have different adapters or shapes.
        """
        states = list(states)
        if not states:
            raise ValueError("stack() needs at least one memory, got none")
        first = states[0]
        for index, state in enumerate(states[1:], 1):
            if _layout(state) != _layout(first):
                raise ValueError(f"memory {index} has other modules or shapes than memory 0; stack memories of one adapter")
        fingerprints = {state.fingerprint for state in states} - {None}
        if len(fingerprints) > 1:
            raise ValueError(f"the memories were written by different adapters: {', '.join(sorted(map(str, fingerprints)))}")
        return cls(Snapshot.stack([state.snapshot for state in states]), next(iter(fingerprints), None))

    def clone(self) -> DeltaMemState:
        """A copy that shares no tensor with the original."""
        return self._with(self.snapshot.map(lambda tensor: tensor.detach().clone()))

    def to(self, device: torch.device | str) -> DeltaMemState:
        """The same memory on another device."""
        return self._with(self.snapshot.map(lambda tensor: tensor.to(device)))

    def reset(self) -> None:
        """Forget everything."""
        nothing = replace(self.snapshot, open_segment=None).map(torch.zeros_like)
        self.snapshot, self.fingerprint = nothing, None

    @contextmanager
    def unchanged_on_error(self) -> Iterator[None]:
        """Restore the memory if the block ends in an error."""
        before = self.snapshot, self.fingerprint
        try:
            yield
        except BaseException:
            self.snapshot, self.fingerprint = before
            raise

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a safetensors file; an existing file is replaced in one step, or not at all."""
        write_state_file(path, self.snapshot, self.fingerprint)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DeltaMemState:
        """Read a memory from a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, holds something else (a session, for instance), or has no usable memory.
        """
        snapshot, fingerprint, metadata = read_state_file(path)
        notes = sorted({*metadata} - {"format", "version", "fingerprint"})
        if notes:
            raise ValueError(
                f"{os.fspath(path)!r} holds more than a memory: {', '.join(notes)}. Load a session with ChatSession.load(...), "
                "and use its memory"
            )
        return cls(snapshot, fingerprint)

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes, for a database."""
        return to_bytes(self.snapshot, self.fingerprint, {})

    @classmethod
    def from_bytes(cls, data: bytes) -> DeltaMemState:
        """The inverse of `to_bytes`.

        Raises:
            ValueError: the bytes hold no usable memory.
        """
        snapshot, fingerprint, _ = from_bytes(data, "this memory")
        return cls(snapshot, fingerprint)

    def _with(self, snapshot: Snapshot) -> DeltaMemState:
        return DeltaMemState(snapshot, self.fingerprint)


def _layout(state: DeltaMemState) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape[1:]) for name, tensor in state.tensors.items()}

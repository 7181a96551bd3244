"""DeltaMemState: a memory as a value, to keep, stack, save and hand over."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deltamem.io.files import check_regular, write_atomically
from deltamem.memory.snapshot import MOST_TOKENS, OpenSegment, Snapshot

FORMAT = "deltamem-state"
FORMAT_VERSION = 1


class DeltaMemState:
    """The memory of one or more users (batch rows): one float32 tensor for every adapted attention module.

    Tensors are never changed in place: writing to a memory replaces them. So a clone, a row or a stack is independent of where
    it came from.

    Args:
        snapshot: what it holds.
        fingerprint: which adapter wrote it; None if it is empty or was written while the adapter was in training.

    Raises:
        ValueError: tensors of other shapes or dtypes, of different batch sizes, or with NaN or infinite values.
    """

    def __init__(self, snapshot: Snapshot, fingerprint: str | None = None) -> None:
        _check(snapshot)
        self.snapshot = snapshot
        self.fingerprint = fingerprint

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The states by attention module, `[batch, num_states, r, r]` each."""
        return dict(self.snapshot.states)

    @property
    def tokens(self) -> list[int]:
        """How many tokens were written to each row."""
        return self.snapshot.tokens.tolist()

    @property
    def batch_size(self) -> int:
        """Number of rows, each a memory of its own."""
        return self.snapshot.rows

    @property
    def nbytes(self) -> int:
        """Size of the states in bytes."""
        return sum(tensor.nbytes for tensor in self.snapshot.states.values())

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, rows: int | slice) -> DeltaMemState:
        """One row or several, as a memory of its own: `state[0]`, `state[1:3]`."""
        if not isinstance(rows, int | slice) or isinstance(rows, bool):
            raise TypeError(f"a memory's rows are given by an integer or a slice, got {rows!r}")
        if isinstance(rows, int):
            if not -self.batch_size <= rows < self.batch_size:
                raise IndexError(f"row {rows} of a memory with {self.batch_size} rows")
            rows = slice(rows, rows + 1 or None)
        if not len(range(*rows.indices(self.batch_size))):
            raise IndexError(f"{rows} selects no row of a memory with {self.batch_size} rows")
        return self._map(lambda tensor: tensor[rows])

    def __repr__(self) -> str:
        shape = tuple(next(iter(self.snapshot.states.values())).shape)
        written = ", ".join(map(str, self.tokens[:4])) + (", ..." if len(self) > 4 else "")
        return f"DeltaMemState({len(self.tensors)} modules, {list(shape)} each, {self.nbytes} bytes; tokens written: {written})"

    @classmethod
    def stack(cls, states: Iterable[DeltaMemState]) -> DeltaMemState:
        """Put memories of one adapter side by side as the rows of one batch.

        Raises:
            ValueError: no memory given, or memories of different adapters or shapes.
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
        """A copy that shares nothing."""
        return self._map(lambda tensor: tensor.detach().clone())

    def to(self, device: torch.device | str) -> DeltaMemState:
        """The same memory on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def reset(self) -> None:
        """Forget everything."""
        states = {name: torch.zeros_like(state) for name, state in self.snapshot.states.items()}
        self.snapshot, self.fingerprint = Snapshot(states, torch.zeros_like(self.snapshot.tokens)), None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a safetensors file; an existing file is replaced in one step, or not at all."""
        write_state_file(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DeltaMemState:
        """Read a memory from a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, is something else (a session, for instance), or holds no usable memory.
        """
        state, metadata = read_state_file(path)
        notes = sorted({*metadata} - {"format", "version", "fingerprint"})
        if notes:
            raise ValueError(
                f"{os.fspath(path)!r} holds more than a memory: {', '.join(notes)}. Load a session with ChatSession.load(...), "
                "and take its memory"
            )
        return state

    def _map(self, change: Any) -> DeltaMemState:
        return DeltaMemState(self.snapshot.map(change), self.fingerprint)


def write_state_file(path: str | os.PathLike[str], state: DeltaMemState, notes: Mapping[str, str] | None = None) -> None:
    """Write a memory, and what belongs to it as text, into one safetensors file: all of it or nothing.

    The file is readable by its owner alone: it holds what a user said.
    """
    write_atomically(path, _serialised(state, notes or {}))


def _serialised(state: DeltaMemState, notes: Mapping[str, str]) -> bytes:
    """A memory and its notes as the bytes of a file.

    Raises:
        ValueError: the file could not be read again.
    """
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "fingerprint": json.dumps(state.fingerprint), **notes}
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.snapshot.to_flat().items()
    }
    try:
        data = save(tensors, metadata)
        _parsed(data, "the file")
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"this memory cannot be saved: {error}. A file has room for 100 MB of names and notes; a session's messages are "
            "among them, and forget_context() drops those"
        ) from error
    return data


def read_state_file(path: str | os.PathLike[str]) -> tuple[DeltaMemState, dict[str, str]]:
    """Read a memory and its metadata; raises what `DeltaMemState.load` raises."""
    if not os.path.exists(path) or os.path.isdir(path):
        raise FileNotFoundError(f"there is no memory file {os.fspath(path)!r}")
    check_regular(path)
    # Read at once: safe_open would open the file a second time for the tensors, and find another's there if somebody saves.
    return _parsed(Path(path).read_bytes(), repr(os.fspath(path)))


def _parsed(data: bytes, name: str) -> tuple[DeltaMemState, dict[str, str]]:
    """A memory and its metadata from the bytes of a file; `name` is what it is called in an error.

    Raises:
        ValueError: they hold none.
    """
    try:
        tensors, metadata = load(data), _metadata_in(data)
    except (SafetensorError, KeyError, TypeError, RuntimeError, OverflowError) as error:  # from torch: for absurd shapes
        raise ValueError(f"{name} is not a readable safetensors file: {error}") from error
    try:
        fingerprint = _fingerprint_in(metadata)
        return DeltaMemState(Snapshot.from_flat(tensors), fingerprint), metadata
    except ValueError as error:
        raise ValueError(f"{name} holds no usable memory: {error}") from error


def _metadata_in(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which `load` leaves out: its header is JSON behind its length, 8 bytes."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__") or {})


def _layout(state: DeltaMemState) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape[1:]) for name, tensor in state.snapshot.states.items()}


def _fingerprint_in(metadata: Mapping[str, str]) -> str | None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its metadata say format={metadata.get('format')!r}, where a memory has {FORMAT!r}")
    if metadata.get("version") != str(FORMAT_VERSION):
        raise ValueError(
            f"it has version {metadata.get('version')!r} of the format, this deltamem reads version {FORMAT_VERSION}; "
            "install the deltamem that wrote it"
        )
    try:
        fingerprint = json.loads(metadata["fingerprint"])
    except (KeyError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError("its metadata lack the fingerprint of the adapter") from error
    if fingerprint is not None and not isinstance(fingerprint, str):
        raise ValueError(f"its metadata have the fingerprint {fingerprint!r}, where a string belongs")
    return fingerprint


def _check(snapshot: Snapshot) -> None:
    if not snapshot.states:
        raise ValueError("a memory needs at least one tensor, got none")
    for name, tensor in snapshot.states.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the memory of {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"the memory of {name} must be float32, got {tensor.dtype}")
        if tensor.ndim != 4 or tensor.shape[2] != tensor.shape[3] or 0 in tensor.shape:
            raise ValueError(f"the memory of {name} must be [batch, num_states, r, r], got {tuple(tensor.shape)}")
    batches = {tensor.shape[0] for tensor in snapshot.states.values()}
    if len(batches) > 1:
        raise ValueError(f"all tensors of a memory must have one batch size, got {sorted(batches)}")
    _check_counts("tokens written", snapshot.tokens, batches.pop(), 0, MOST_TOKENS)
    if snapshot.open_segment is not None:
        _check_open_segment(snapshot, snapshot.open_segment)
    bad = find_not_finite(snapshot)
    if bad is not None:
        raise ValueError(f"the memory of {bad} has NaN or infinite values")


def _check_open_segment(snapshot: Snapshot, segment: OpenSegment) -> None:
    _check_counts("ids of open segments", segment.ids, snapshot.rows, -1, torch.iinfo(torch.int64).max)
    _check_counts("sizes of open segments", segment.sizes, snapshot.rows, 0, MOST_TOKENS)
    if set(segment.sums) != set(snapshot.states):
        raise ValueError("an open segment must have been seen by all modules of the memory, or by none")
    for name, sums in segment.sums.items():
        if sums.dtype != torch.float32 or sums.ndim != 2 or sums.shape[0] != snapshot.rows:
            raise ValueError(
                f"the open segment of {name} must be float32 [{snapshot.rows}, width], got {sums.dtype} {tuple(sums.shape)}"
            )


def _check_counts(what: str, counts: Tensor, rows: int, least: int, most: int) -> None:
    if not isinstance(counts, Tensor) or counts.dtype != torch.int64 or tuple(counts.shape) != (rows,):
        given = f"{counts.dtype} {tuple(counts.shape)}" if isinstance(counts, Tensor) else type(counts).__name__
        raise ValueError(f"the {what} must be int64 [{rows}], one for each row, got {given}")
    if not counts.is_meta and bool(((counts < least) | (counts > most)).any()):
        raise ValueError(f"the {what} must be at least {least} and at most {most}, got {counts.tolist()!r:.80}")


def find_not_finite(snapshot: Snapshot) -> str | None:
    """The name of a module whose memory has NaN or infinite values, None if all are finite."""
    sums = {} if snapshot.open_segment is None else snapshot.open_segment.sums
    tensors = [(name, tensor) for part in (snapshot.states, sums) for name, tensor in part.items() if not tensor.is_meta]
    # One sum per tensor and one look at all of them: NaN and infinity survive a sum with zero weights.
    totals = [(tensor.detach() * 0).sum().cpu() for _, tensor in tensors]
    if not totals or bool(torch.stack(totals).isfinite().all()):
        return None
    return next(name for (name, _), total in zip(tensors, totals, strict=True) if not total.isfinite())

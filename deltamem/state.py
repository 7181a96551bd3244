"""DeltaMemState: a memory as a value, to keep, stack, save and hand over."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "deltamem-state"
FORMAT_VERSION = 1


class DeltaMemState:
    """The memory of one or more users (batch rows): one float32 tensor for every adapted attention module.

    Tensors are never changed in place: writing to a memory replaces them. So a clone, a row or a stack is independent of where
    it came from.

    Args:
        tensors: `{module name: float32 [batch, num_states, r, r]}`, all of one batch size.
        fingerprint: which adapter wrote it; None if it is empty or was written while the adapter was in training.

    Raises:
        ValueError: tensors of other shapes or dtypes, of different batch sizes, or with NaN or infinite values.
    """

    def __init__(self, tensors: Mapping[str, Tensor], fingerprint: str | None = None) -> None:
        _check_tensors(tensors)
        self.tensors = dict(tensors)
        self.fingerprint = fingerprint

    @property
    def batch_size(self) -> int:
        """Number of rows, each a memory of its own."""
        return next(iter(self.tensors.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

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
        shape = tuple(next(iter(self.tensors.values())).shape)
        return f"DeltaMemState({len(self.tensors)} modules, {list(shape)} each, {self.nbytes} bytes)"

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
            if _layout(state.tensors) != _layout(first.tensors):
                raise ValueError(f"memory {index} has other modules or shapes than memory 0; stack memories of one adapter")
        fingerprints = {state.fingerprint for state in states} - {None}
        if len(fingerprints) > 1:
            raise ValueError(f"the memories were written by different adapters: {', '.join(sorted(map(str, fingerprints)))}")
        tensors = {name: torch.cat([state.tensors[name] for state in states]) for name in first.tensors}
        return cls(tensors, next(iter(fingerprints), None))

    def clone(self) -> DeltaMemState:
        """A copy that shares nothing."""
        return self._map(lambda tensor: tensor.detach().clone())

    def to(self, device: torch.device | str) -> DeltaMemState:
        """The same memory on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def reset(self) -> None:
        """Forget everything."""
        self.tensors = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self.fingerprint = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a safetensors file; an existing file is replaced in one step, or not at all."""
        write_state_file(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DeltaMemState:
        """Read a memory from a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, is something else, or holds no usable memory.
        """
        return read_state_file(path)[0]

    def _map(self, change: Any) -> DeltaMemState:
        return DeltaMemState({name: change(tensor) for name, tensor in self.tensors.items()}, self.fingerprint)


def write_state_file(path: str | os.PathLike[str], state: DeltaMemState, notes: Mapping[str, str] | None = None) -> None:
    """Write a memory, and what belongs to it as text, into one safetensors file: all of it or nothing.

    The file is readable by its owner alone: it holds what a user said.
    """
    path = Path(path)
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "fingerprint": json.dumps(state.fingerprint), **(notes or {})}
    data = save(
        {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.tensors.items()},
        metadata,
    )
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_state_file(path: str | os.PathLike[str]) -> tuple[DeltaMemState, dict[str, str]]:
    """Read a memory and its metadata; raises what `DeltaMemState.load` raises."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no memory file {os.fspath(path)!r}")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, TypeError, RuntimeError, OverflowError) as error:  # the latter from torch, for absurd shapes
        raise ValueError(f"{os.fspath(path)!r} is not a readable safetensors file: {error}") from error
    try:
        return DeltaMemState(tensors, _fingerprint_in(metadata)), metadata
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} holds no usable memory: {error}") from error


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}


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


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise ValueError("a memory needs at least one tensor, got none")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the memory of {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"the memory of {name} must be float32, got {tensor.dtype}")
        if tensor.ndim != 4 or tensor.shape[2] != tensor.shape[3] or 0 in tensor.shape:
            raise ValueError(f"the memory of {name} must be [batch, num_states, r, r], got {tuple(tensor.shape)}")
    batches = {tensor.shape[0] for tensor in tensors.values()}
    if len(batches) > 1:
        raise ValueError(f"all tensors of a memory must have one batch size, got {sorted(batches)}")
    bad = find_not_finite(tensors)
    if bad is not None:
        raise ValueError(f"the memory of {bad} has NaN or infinite values")


def find_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with NaN or infinite values, None if all are finite."""
    real = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    # One sum per tensor and one look at all of them: NaN and infinity survive a sum with zero weights.
    sums = [(tensor.detach() * 0).sum().cpu() for tensor in real.values()]
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return None
    return next(name for name, total in zip(real, sums, strict=True) if not total.isfinite())

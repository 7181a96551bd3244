"""The file format of a memory: safetensors, with further data in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deltamem.io.files import check_regular, write_atomically
from deltamem.memory.snapshot import Snapshot
from deltamem.memory.soundness import check_snapshot

FORMAT = "deltamem-state"
VERSION = "1"
# The readers by version of the format; each makes a memory from a file's tensors. Every released version stays readable.
READERS: dict[str, Callable[[Mapping[str, Tensor]], Snapshot]] = {"1": Snapshot.from_flat}


def write_state_file(
    path: str | os.PathLike[str], snapshot: Snapshot, fingerprint: str | None, notes: Mapping[str, str] | None = None
) -> None:
    """Write a memory, and notes as text, to one safetensors file, completely or not at all.

    Only its owner can read the file, because it holds what a user said.
    """
    write_atomically(path, to_bytes(snapshot, fingerprint, notes or {}))


def to_bytes(snapshot: Snapshot, fingerprint: str | None, notes: Mapping[str, str]) -> bytes:
    """The content of a file with a memory and its notes.

    Raises:
        ValueError: the file could not be read back.
    """
    metadata = {"format": FORMAT, "version": VERSION, "fingerprint": json.dumps(fingerprint), **notes}
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in snapshot.to_flat().items()
    }
    try:
        data = save(tensors, metadata)
        from_bytes(data, "the file")
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"this memory cannot be saved: {error}. A file has room for 100 MB of names and notes, among them a session's "
            "messages; forget_context() drops these"
        ) from error
    return data


def read_state_file(path: str | os.PathLike[str]) -> tuple[Snapshot, str | None, dict[str, str]]:
    """Read a memory, the fingerprint of the adapter that wrote it, and the metadata of the file.

    Raises:
        FileNotFoundError, ValueError: see `DeltaMemState.load`.
    """
    if not os.path.exists(path) or os.path.isdir(path):
        raise FileNotFoundError(f"there is no memory file {os.fspath(path)!r}")
    check_regular(path)
    # Read the file at once: safe_open would open it again for the tensors, and could then find a newer file.
    return from_bytes(Path(path).read_bytes(), repr(os.fspath(path)))


def from_bytes(data: bytes, name: str) -> tuple[Snapshot, str | None, dict[str, str]]:
    """Like `read_state_file`, from the bytes of a file; `name` is the file's name in errors.

    Raises:
        ValueError: the file holds no usable memory.
    """
    try:
        tensors, metadata = load(data), _metadata_in(data)
    except (SafetensorError, KeyError, TypeError, RuntimeError, OverflowError) as error:  # torch's, for absurd shapes
        raise ValueError(f"{name} is not a readable safetensors file: {error}") from error
    try:
        fingerprint = _fingerprint_in(metadata)
        snapshot = READERS[metadata["version"]](tensors)
        check_snapshot(snapshot)
    except ValueError as error:
        raise ValueError(f"{name} holds no usable memory: {error}") from error
    return snapshot, fingerprint, metadata


def _metadata_in(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which `load` drops: the header is JSON, after 8 bytes with its length."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__") or {})


def _fingerprint_in(metadata: Mapping[str, str]) -> str | None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its metadata say format={metadata.get('format')!r}, where a memory has {FORMAT!r}")
    if metadata.get("version") not in READERS:
        raise ValueError(
            f"it has version {metadata.get('version')!r} of the format, this deltamem reads version {', '.join(READERS)}; "
            "install the deltamem that wrote it"
        )
    try:
        fingerprint = json.loads(metadata["fingerprint"])
    except (KeyError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError("its metadata lack the fingerprint of the adapter") from error
    if fingerprint is not None and not isinstance(fingerprint, str):
        raise ValueError(f"its metadata have the fingerprint {fingerprint!r}, where a string belongs")
    return fingerprint

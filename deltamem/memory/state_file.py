"""The file of a memory: safetensors, with what else belongs to it in the metadata."""

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
# By the version of the format: what makes a memory of a file's tensors. A version that was written once is read for ever.
READERS: dict[str, Callable[[Mapping[str, Tensor]], Snapshot]] = {"1": Snapshot.from_flat}


def write_state_file(
    path: str | os.PathLike[str], snapshot: Snapshot, fingerprint: str | None, notes: Mapping[str, str] | None = None
) -> None:
    """Write a memory, and what belongs to it as text, into one safetensors file: all of it or nothing.

    The file is readable by its owner alone: it holds what a user said.
    """
    write_atomically(path, _serialised(snapshot, fingerprint, notes or {}))


def _serialised(snapshot: Snapshot, fingerprint: str | None, notes: Mapping[str, str]) -> bytes:
    """A memory and its notes as the bytes of a file.

    Raises:
        ValueError: the file could not be read again.
    """
    metadata = {"format": FORMAT, "version": VERSION, "fingerprint": json.dumps(fingerprint), **notes}
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in snapshot.to_flat().items()
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


def read_state_file(path: str | os.PathLike[str]) -> tuple[Snapshot, str | None, dict[str, str]]:
    """Read a memory, the fingerprint of the adapter that wrote it, and the file's metadata.

    Raises:
        FileNotFoundError, ValueError: see `DeltaMemState.load`.
    """
    if not os.path.exists(path) or os.path.isdir(path):
        raise FileNotFoundError(f"there is no memory file {os.fspath(path)!r}")
    check_regular(path)
    # Read at once: safe_open would open the file a second time for the tensors, and find another file if one is being saved.
    return _parsed(Path(path).read_bytes(), repr(os.fspath(path)))


def _parsed(data: bytes, name: str) -> tuple[Snapshot, str | None, dict[str, str]]:
    """What `read_state_file` gives, from the bytes of a file; `name` stands for the file in errors.

    Raises:
        ValueError: they hold none.
    """
    try:
        tensors, metadata = load(data), _metadata_in(data)
    except (SafetensorError, KeyError, TypeError, RuntimeError, OverflowError) as error:  # from torch: for absurd shapes
        raise ValueError(f"{name} is not a readable safetensors file: {error}") from error
    try:
        fingerprint = _fingerprint_in(metadata)
        snapshot = READERS[metadata["version"]](tensors)
        check_snapshot(snapshot)
    except ValueError as error:
        raise ValueError(f"{name} holds no usable memory: {error}") from error
    return snapshot, fingerprint, metadata


def _metadata_in(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which `load` leaves out: its header is JSON behind its length, 8 bytes."""
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

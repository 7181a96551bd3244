"""Checks that a snapshot is a memory that can be used and saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deltamem.memory.snapshot import MOST_TOKENS, OPEN_IDS, OPEN_SIZES, TOKENS, OpenSegment, Snapshot


def check_snapshot(snapshot: Snapshot) -> None:
    """Check that a snapshot is a memory: it has states, valid counts, and finite numbers.

    Raises:
        ValueError: it is not; the message says what was found.
    """
    if not snapshot.parts:
        raise ValueError("a memory needs at least one tensor, got none")
    for part in snapshot.parts.values():
        if part.dtype != torch.float32:
            raise ValueError(f"a memory must be float32, got {part.dtype}")
    _check_counts("tokens written", snapshot.tokens, next(iter(snapshot.parts.values())).shape[1], 0, MOST_TOKENS)
    if snapshot.open_segment is not None:
        _check_open_segment(snapshot, snapshot.open_segment)
    bad = find_not_finite(snapshot)
    if bad is not None:
        raise ValueError(f"the memory of {bad} has NaN or infinite values")


def _check_open_segment(snapshot: Snapshot, segment: OpenSegment) -> None:
    _check_counts("ids of open segments", segment.ids, snapshot.rows, -1, torch.iinfo(torch.int64).max)
    _check_counts("sizes of open segments", segment.sizes, snapshot.rows, 0, MOST_TOKENS)
    if set(segment.sums) != set(snapshot.layers):
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
    """The name of a layer whose memory has NaN or infinite values; None if all values are finite."""
    sums = {} if snapshot.open_segment is None else snapshot.open_segment.sums
    tensors = [tensor for tensor in (*snapshot.parts.values(), *sums.values()) if not tensor.is_meta]
    # One sum per tensor, and a single check of all sums: NaN and infinity survive multiplication by zero.
    totals = [(tensor.detach() * 0).sum().cpu() for tensor in tensors]
    if not totals or bool(torch.stack(totals).isfinite().all()):
        return None
    named = [*snapshot.states().items(), *sums.items()]
    return next(name for name, tensor in named if not bool(tensor.isfinite().all()))


def _shapes_of(snapshot: Snapshot) -> dict[str, tuple[int, ...]]:
    """The shapes of the states and of the open segment's sums, by their names in a file."""
    counts = (TOKENS, OPEN_IDS, OPEN_SIZES)
    return {name: tuple(tensor.shape) for name, tensor in snapshot.to_flat().items() if name not in counts}


def check_fits_adapter(snapshot: Snapshot, expected: Mapping[str, tuple[int, ...]], adapter: str) -> None:
    """Check that a memory has the states of an adapter.

    Args:
        snapshot: the memory.
        expected: the shapes that the states and the open segment's sums must have, by their names in a file.
        adapter: the name of the adapter.

    Raises:
        ValueError: the names or shapes differ.
    """
    given = _shapes_of(snapshot)
    different = sorted(name for name in {*given, *expected} if given.get(name) != expected.get(name))
    if different:
        example = different[0]
        raise ValueError(
            f"this memory does not fit the active adapter {adapter!r}: {len(different)} tensors differ; {example} has "
            f"{given.get(example, 'nothing')} in the memory and {expected.get(example, 'nothing')} in the model. Use the "
            "adapter and backbone that wrote it, or start with model.new_memory()"
        )

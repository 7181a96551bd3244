"""A memory with its journal and snapshots as one file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from deltamem.chat.tokens import check_messages
from deltamem.memory.snapshot import Snapshot as MemoryContents
from deltamem.memory.state import DeltaMemState
from deltamem.memory.state_file import from_bytes, to_bytes
from deltamem.store import Contents, Entry, Key, Memory, Snapshot, Turn

# The metadata of the file's header, and the version of what it holds.
NOTES, VERSION = "served", 1
STATES = ("state", "before")  # the fields that the file's rows hold, in the order of `_states`


def exported(contents: Contents) -> bytes:
    """The content of a file with everything that is kept of a memory."""
    states = [DeltaMemState.from_bytes(state) for state in _states(contents)]
    notes = {
        "version": VERSION,
        "memory": {**_without_states(contents.memory), "salt": contents.memory.salt.hex(), "key": None},
        "entries": [asdict(entry) for entry in contents.entries],
        "turns": [{**_without_states(turn), "kept": turn.before is not None} for turn in contents.turns],
        "snapshots": [_without_states(snapshot) for snapshot in contents.snapshots],
    }
    whole = DeltaMemState.stack(states)
    return to_bytes(whole.snapshot, whole.fingerprint, {NOTES: json.dumps(notes)})


def imported(data: bytes, key: Key) -> Contents:
    """The contents of a file that `exported` made, under a new name.

    Raises:
        ValueError: the file is not one.
    """
    snapshot, fingerprint, metadata = from_bytes(data, "this file")
    try:
        notes = json.loads(metadata[NOTES])
        if notes["version"] != VERSION:
            raise ValueError(f"it has version {notes['version']!r:.20}, this deltamem reads version {VERSION}")
        contents = _contents(notes, key)
        rows = iter(_rows(snapshot, fingerprint, sum(1 for _ in _states(contents))))
        contents = Contents(
            replace(contents.memory, state=next(rows)),
            contents.entries,
            [turn if turn.before is None else replace(turn, before=next(rows)) for turn in contents.turns],
            [replace(kept, state=next(rows)) for kept in contents.snapshots],
        )
        _check(contents)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"this file holds no exported memory: {type(error).__name__}: {error!s:.200}") from error
    return contents


def _states(contents: Contents) -> Iterable[bytes]:
    """All states, in the order of the file's rows."""
    yield contents.memory.state
    yield from (turn.before for turn in contents.turns if turn.before is not None)
    yield from (snapshot.state for snapshot in contents.snapshots)


def _without_states(kept: Memory | Turn | Snapshot) -> dict[str, Any]:
    return {name: value for name, value in asdict(kept).items() if name not in STATES}


def _contents(notes: dict[str, Any], key: Key) -> Contents:
    """The contents, with empty states where the file has one."""
    given = notes["memory"]
    memory = Memory(**{**given, "key": key, "state": b"", "salt": bytes.fromhex(given["salt"]), "seen": tuple(given["seen"])})
    turns = []
    for turn in notes["turns"]:
        before = b"" if turn.pop("kept") else None
        turns.append(Turn(**{**turn, "context": tuple(turn["context"]), "before": before}))
    snapshots = [Snapshot(**{**kept, "state": b"", "seen": tuple(kept["seen"])}) for kept in notes["snapshots"]]
    return Contents(memory, [Entry(**entry) for entry in notes["entries"]], turns, snapshots)


def _rows(snapshot: MemoryContents, fingerprint: str | None, expected: int) -> list[bytes]:
    states = DeltaMemState(snapshot, fingerprint)
    if len(states) != expected:
        raise ValueError(f"it has {len(states)} states, its notes {expected}")
    return [_state_bytes(states[row]) for row in range(len(states))]


def _state_bytes(state: DeltaMemState) -> bytes:
    """A row of the file as its own state; one to which nothing was written belongs to every adapter."""
    return (state if state.tokens != [0] else DeltaMemState(state.snapshot)).to_bytes()


def _check(contents: Contents) -> None:
    """Check what the types do not say.

    Raises:
        ValueError: the parts do not belong together.
    """
    if contents.entries:
        check_messages([{"role": entry.role, "content": entry.content} for entry in contents.entries])
    ids = [entry.id for entry in contents.entries]
    numbers = [turn.number for turn in contents.turns]
    texts = (*ids, *contents.memory.seen, *(link for kept in contents.snapshots for link in kept.seen))
    if not (
        all(isinstance(text, str) for text in texts)
        and len({*ids}) == len(ids)
        and numbers == sorted({*numbers})
        and all(type(number) is int and 0 < number <= contents.memory.turn for number in numbers)
        and all({*turn.context} <= {*ids} for turn in contents.turns)
        and {entry.turn for entry in contents.entries} <= {*numbers}
    ):
        raise ValueError("its messages, turns and states do not belong together")

"""A memory with its journal and snapshots as one file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from deltamem.chat.tokens import check_messages
from deltamem.memory.snapshot import Snapshot as MemoryContents
from deltamem.memory.state import DeltaMemState
from deltamem.memory.state_file import from_bytes, to_bytes
from deltamem.serve.memories import messages_of
from deltamem.serve.seen import FORGOTTEN
from deltamem.store import Contents, Entry, Key, Memory, Snapshot, Turn
from deltamem.store.records import check_name

# The metadata of the file's header, and the version of what it holds.
NOTES, VERSION = "served", 1
STATES = ("state", "before")  # the fields that the file's rows hold, in the order of `_states`
ROLES = ("system", "user", "assistant")
# What a field of a record may be in the file, by the field's type: only what a database can store and JSON can show again.
ACCEPTED: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: type(value) is bool,
    "int": lambda value: type(value) is int and 0 <= value < 2**31,
    "float": lambda value: type(value) in (int, float) and math.isfinite(value),
    "float | None": lambda value: value is None or (type(value) in (int, float) and math.isfinite(value)),
    "str": lambda value: isinstance(value, str) and value.isprintable(),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
}


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
    memory = _record(Memory, given, key=key, state=b"", salt=bytes.fromhex(given["salt"]))
    turns = [_record(Turn, turn, before=b"" if turn.pop("kept") else None) for turn in notes["turns"]]
    snapshots = [_record(Snapshot, kept, state=b"") for kept in notes["snapshots"]]
    entries = [_record(Entry, entry, content=entry["content"]) for entry in notes["entries"]]
    return Contents(memory, entries, turns, snapshots)


def _record(kind: type[Any], given: dict[str, Any], **known: Any) -> Any:
    """A record of what the file says and of what is known without it.

    Raises:
        KeyError, TypeError: the file lacks a field, or has one that is not accepted.
    """
    values = dict(known)
    for field in fields(kind):
        if field.name not in known:
            value = given[field.name]
            if not ACCEPTED[str(field.type)](value):
                raise TypeError(f"its field {field.name} has a value that no export writes")
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


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
    memory, entries = contents.memory, contents.entries
    if entries:
        check_messages(messages_of(entries))
    for entry in entries:
        check_name("message", entry.id)
        entry.content.encode()  # refuses half of a surrogate pair
    ids = [entry.id for entry in entries]
    numbers = [turn.number for turn in contents.turns]
    versions = [(memory.turn, memory.seen), *((kept.turn, kept.seen) for kept in contents.snapshots)]
    if not (
        len({*ids}) == len(ids)
        and all(entry.role in ROLES for entry in entries)
        and numbers == sorted({*numbers})
        and all(0 < number <= memory.turn for number in numbers)
        and all({*turn.context} <= {*ids} for turn in contents.turns)
        and {entry.turn for entry in entries} <= {*numbers}
        and (memory.journal or not (entries or numbers))
        and all(turn <= memory.turn for turn, _ in versions)
        and (not memory.journal or all(_has_its_messages(entries, turn, seen) for turn, seen in versions))
    ):
        raise ValueError("its messages, turns and states do not belong together")


def _has_its_messages(entries: Sequence[Entry], turn: int, seen: Sequence[str]) -> bool:
    """Whether a journal up to a turn has one message for each digest of `Memory.seen` that was not forgotten."""
    written = sum(1 for entry in entries if entry.written and entry.turn <= turn)
    return written == sum(1 for link in seen if not link.startswith(FORGOTTEN))

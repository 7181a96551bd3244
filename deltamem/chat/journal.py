"""Journal: the messages that a session wrote, so that they can be listed and forgotten."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deltamem.chat.tokens import Message
from deltamem.memory.state import DeltaMemState


@dataclass(frozen=True)
class Entry:
    """A message that was written.

    Args:
        id: identifies it.
        role, content: the message.
        time: when it was written, in seconds since 1970.
        tokens: how many tokens the memory had after the write.
    """

    id: str
    role: str
    content: str
    time: float
    tokens: int

    @property
    def message(self) -> Message:
        """The message in the form of a chat template."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Write:
    """What one call wrote.

    Args:
        entries: its messages.
        observed: whether they were observed, and did not become part of the context.
        begins: the memory before the write if the context was empty; None otherwise.
    """

    entries: tuple[Entry, ...]
    observed: bool
    begins: DeltaMemState | None


@dataclass
class Journal:
    """The writes of a session, in order."""

    writes: list[Write] = field(default_factory=list)

    @property
    def entries(self) -> list[Entry]:
        """The messages that were written, in order."""
        return [entry for write in self.writes for entry in write.entries]

    def add(self, messages: Iterable[Message], observed: bool, begins: DeltaMemState | None, after: DeltaMemState) -> None:
        """Add what was written; `after` is the memory after the write."""
        now, tokens = time.time(), after.tokens[0]
        entries = (Entry(uuid.uuid4().hex, message["role"], message["content"], now, tokens) for message in messages)
        self.writes.append(Write(tuple(entries), observed, begins))

    def from_before(self, ids: Collection[str]) -> int:
        """The index of the last write with an empty context that is not after any of these messages.

        Raises:
            ValueError: there is no such message.
        """
        known = {entry.id for entry in self.entries}
        unknown = sorted({*ids} - known)
        if unknown:
            raise ValueError(f"the journal has no message {unknown[0]!r:.80}; its entries have the ids of those that it has")
        first = next((number for number, write in enumerate(self.writes) if _has_any(write, ids)), len(self.writes))
        return max((number for number, write in enumerate(self.writes[: first + 1]) if write.begins is not None), default=0)

    def to_notes(self) -> list[dict[str, Any]]:
        """The journal without the memories, as JSON."""
        return [
            {
                "entries": [vars(entry) for entry in write.entries],
                "observed": write.observed,
                "begins": write.begins is not None,
            }
            for write in self.writes
        ]

    @classmethod
    def from_notes(cls, notes: Iterable[Mapping[str, Any]], memories: Iterable[DeltaMemState]) -> Journal:
        """The inverse of `to_notes`; the memories are those before the writes that have one."""
        rows = iter(memories)
        return cls(
            [
                Write(
                    tuple(Entry(**one) for one in write["entries"]), write["observed"], next(rows) if write["begins"] else None
                )
                for write in notes
            ]
        )

    def keep_names(self, write: Write) -> None:
        """Give the messages of the last write the ids and times that they had."""
        last = self.writes[-1]
        named = (replace(new, id=old.id, time=old.time) for new, old in zip(last.entries, write.entries, strict=True))
        self.writes[-1] = replace(last, entries=tuple(named))


def remaining(write: Write, ids: Collection[str]) -> Write:
    """A write without some messages."""
    return replace(write, entries=tuple(entry for entry in write.entries if entry.id not in ids))


def is_journal(notes: Any) -> bool:
    """Whether this is what `Journal.to_notes` returns, or None."""
    return notes is None or (isinstance(notes, list) and all(map(_is_write, notes)) and (not notes or notes[0]["begins"]))


def _is_write(given: Any) -> bool:
    return (
        isinstance(given, dict)
        and given.keys() == {"entries", "observed", "begins"}
        and type(given["observed"]) is bool
        and type(given["begins"]) is bool
        and isinstance(given["entries"], list)
        and all(map(_is_entry, given["entries"]))
    )


def _is_entry(given: Any) -> bool:
    kinds = {"id": str, "role": str, "content": str, "time": float, "tokens": int}
    return isinstance(given, dict) and {name: type(value) for name, value in given.items()} == kinds


def _has_any(write: Write, ids: Collection[str]) -> bool:
    return any(entry.id in ids for entry in write.entries)

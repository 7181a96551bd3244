"""What a store keeps. All times are in seconds since 1970, UTC."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

NAME = re.compile(r"[a-zA-Z0-9_.:@-]{1,64}")


def check_name(what: str, name: str) -> None:
    """Check the name of a tenant, a memory or a snapshot.

    Raises:
        ValueError: it is not accepted.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r:.80} is not accepted; give 1 to 64 of the characters a to z, A to Z, 0 to 9, '_', '.', ':', '@' "
            "and '-'"
        )


def check_seconds(what: str, seconds: float) -> None:
    """Check a length of time.

    Raises:
        ValueError: it is not accepted.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"{what} {seconds!r} is not accepted; give a finite number of seconds above 0")


class _Names(NamedTuple):
    tenant: str
    memory: str


class Key(_Names):
    """The name of a memory, and the tenant that it belongs to.

    Raises:
        ValueError: one of the names is not accepted.
    """

    __slots__ = ()

    def __new__(cls, tenant: str, memory: str) -> Key:
        """Check the names."""
        check_name("tenant", tenant)
        check_name("memory", memory)
        return super().__new__(cls, tenant, memory)

    def __str__(self) -> str:
        return f"{self.memory!r} of {self.tenant!r}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A memory without its contents.

    Attributes:
        key: its name.
        version: 1 at first; every change adds 1.
        created: when it was made.
        updated: when it was last changed.
        ttl: how many seconds it stays after a change; None if for ever.
        expires: from when on it is not found; None if it stays.
        tokens: the number of tokens written.
        turn: the number of the last turn; 0 at first.
        journal: whether its messages are kept.
    """

    key: Key
    version: int
    created: float
    updated: float
    ttl: float | None
    expires: float | None
    tokens: int
    turn: int
    journal: bool


@dataclass(frozen=True, kw_only=True)
class Memory(Summary):
    """What is kept of one memory, apart from its journal and snapshots.

    Attributes:
        state: the contents.
        salt: 16 random bytes for the digests of its messages.
        seen: the digests of the messages written, in order; one that starts with "-" is of a forgotten message.
    """

    state: bytes
    salt: bytes
    seen: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One message of a journal.

    Attributes:
        id: identifies it in its memory.
        turn: the number of the turn that brought it.
        place: its place among the turn's messages.
        role: who said it.
        content: what was said.
        time: when.
        tokens: its number of tokens.
        written: False if it was only context, such as a system prompt.
    """

    id: str
    turn: int
    place: int
    role: str
    content: str
    time: float
    tokens: int
    written: bool


@dataclass(frozen=True)
class Turn:
    """One write.

    Attributes:
        number: 1 for the first.
        context: the ids of the entries that were read with it.
        before: the state before this turn, which only some turns keep.
    """

    number: int
    context: tuple[str, ...]
    before: bytes | None


@dataclass(frozen=True)
class SnapshotSummary:
    """A snapshot without its contents.

    Attributes:
        name: its name in its memory.
        created: when it was taken.
        turn: the number of the memory's last turn then.
        tokens: the number of tokens written by then.
    """

    name: str
    created: float
    turn: int
    tokens: int


@dataclass(frozen=True)
class Snapshot(SnapshotSummary):
    """A memory as it was at one time.

    Attributes:
        state: the contents.
        seen: see `Memory`.
    """

    state: bytes
    seen: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """Everything that is kept of a memory.

    Attributes:
        memory: the memory.
        entries: its journal's messages, in order.
        turns: its journal's turns, in order.
        snapshots: its snapshots, the oldest first.
    """

    memory: Memory
    entries: list[Entry]
    turns: list[Turn]
    snapshots: list[Snapshot]

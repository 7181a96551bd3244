"""The rows of a memory's journal. Every function runs in a transaction of its caller."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError

from deltamem.store.errors import NotFound, StoreError
from deltamem.store.records import Entry, Key, Turn
from deltamem.store.tables import columns, copy_rows, entries, of, turns, values


def read_entries(connection: Connection, key: Key) -> list[Entry]:
    """All messages, in order."""
    query = select(*columns(entries, Entry)).where(of(entries, key)).order_by(entries.c.turn, entries.c.place)
    return [Entry(*row) for row in connection.execute(query)]


def read_turns(connection: Connection, key: Key, since: int) -> list[Turn]:
    """The turns from a number on, in order."""
    query = select(*columns(turns, Turn)).where(of(turns, key), turns.c.number >= since).order_by(turns.c.number)
    return [Turn(*row) for row in connection.execute(query)]


def add(connection: Connection, key: Key, new_entries: Sequence[Entry], new_turns: Sequence[Turn]) -> None:
    """Add messages and turns.

    Raises:
        StoreError: one is there already.
    """
    try:
        for table, records in ((entries, new_entries), (turns, new_turns)):
            if records:
                connection.execute(insert(table), [values(key, record) for record in records])
    except IntegrityError as error:
        raise StoreError(
            f"the journal of the memory {key} has one of these messages or turns already; give new ids and the next number"
        ) from error


def remove_entries(connection: Connection, key: Key, ids: Sequence[str]) -> list[int]:
    """Delete messages; return the numbers of their turns.

    Raises:
        NotFound: one does not exist.
    """
    turn_of = {row.id: row.turn for row in connection.execute(select(entries.c.id, entries.c.turn).where(of(entries, key)))}
    missing = sorted({*ids} - {*turn_of})
    if missing:
        raise NotFound(f"the journal of the memory {key} has no message {missing[0]!r}; entries() lists those that it has")
    if ids:
        this = delete(entries).where(of(entries, key), entries.c.id == bindparam("removed"))
        connection.execute(this, [{"removed": id} for id in ids])
    return [turn_of[id] for id in ids]


def remove_turns(connection: Connection, key: Key, since: int) -> None:
    """Delete the turns from a number on; their messages stay."""
    connection.execute(delete(turns).where(of(turns, key), turns.c.number >= since))


def cut(connection: Connection, key: Key, after: int) -> None:
    """Delete the turns after a number, with their messages."""
    remove_turns(connection, key, after + 1)
    connection.execute(delete(entries).where(of(entries, key), entries.c.turn > after))


def copy(connection: Connection, key: Key, to: Key) -> None:
    """Copy a memory's journal for another memory."""
    for table in (entries, turns):
        copy_rows(connection, table, key, to)

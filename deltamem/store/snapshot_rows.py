"""The rows of a memory's snapshots. Every function runs in a transaction of its caller."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from deltamem.store.errors import Exists, NotFound
from deltamem.store.records import Key, Snapshot, SnapshotSummary
from deltamem.store.tables import columns, copy_rows, of, snapshots, values


def add(connection: Connection, key: Key, snapshot: Snapshot) -> None:
    """Add a snapshot.

    Raises:
        Exists: there is one of this name.
    """
    try:
        connection.execute(insert(snapshots).values(values(key, snapshot)))
    except IntegrityError as error:
        raise Exists(f"the memory {key} has a snapshot {snapshot.name!r} already; choose another name") from error


def find(connection: Connection, key: Key, name: str) -> Snapshot:
    """Read a snapshot.

    Raises:
        NotFound: there is none of this name.
    """
    query = select(*columns(snapshots, Snapshot)).where(of(snapshots, key), snapshots.c.name == name)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"the memory {key} has no snapshot {name!r}; snapshots() lists those that it has")
    return Snapshot(*row)


def summaries(connection: Connection, key: Key) -> list[SnapshotSummary]:
    """All snapshots, the oldest first."""
    query = select(*columns(snapshots, SnapshotSummary)).where(of(snapshots, key)).order_by(snapshots.c.created)
    return [SnapshotSummary(*row) for row in connection.execute(query)]


def read(connection: Connection, key: Key) -> list[Snapshot]:
    """All snapshots with their contents, the oldest first."""
    query = select(*columns(snapshots, Snapshot)).where(of(snapshots, key)).order_by(snapshots.c.created)
    return [Snapshot(*row) for row in connection.execute(query)]


def replace(connection: Connection, key: Key, since: int, given: Sequence[Snapshot]) -> None:
    """Delete the snapshots from a turn on, and those of the given names; then add those given.

    Raises:
        Exists: two of those given have one name.
    """
    replaced = (snapshots.c.turn >= since) | snapshots.c.name.in_([snapshot.name for snapshot in given])
    connection.execute(delete(snapshots).where(of(snapshots, key), replaced))
    for snapshot in given:
        add(connection, key, snapshot)


def copy(connection: Connection, key: Key, to: Key) -> None:
    """Copy a memory's snapshots for another memory."""
    copy_rows(connection, snapshots, key, to)

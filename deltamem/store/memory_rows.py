"""The rows of memories. Every function runs in a transaction of its caller."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from deltamem.store.errors import Exists, NotFound, Stale
from deltamem.store.records import Key, Memory, Summary
from deltamem.store.tables import columns, memories, of

# What a change of a memory changes; the rest stays as it was made.
CHANGES = ("version", "updated", "expires", "state", "tokens", "turn", "seen")


def expiry(now: float, ttl: float | None) -> float | None:
    """When a memory expires that is changed now."""
    return None if ttl is None else now + ttl


def add(connection: Connection, memory: Memory) -> None:
    """Add a memory; an expired one gives way.

    Raises:
        Exists: there is one of this name.
    """
    connection.execute(delete(memories).where(of(memories, memory.key), ~_alive()))
    fields = {name: value for name, value in vars(memory).items() if name != "key"}
    try:
        connection.execute(insert(memories).values(tenant=memory.key.tenant, memory=memory.key.memory, **fields))
    except IntegrityError as error:
        raise Exists(f"the memory {memory.key} exists already; delete it first, or choose another name") from error


def find(connection: Connection, key: Key, lock: bool = False) -> Memory:
    """Read a memory; `lock` keeps others from changing it until the end of the transaction.

    Raises:
        NotFound: it does not exist, or has expired.
    """
    query = select(memories).where(of(memories, key), _alive())
    return _record(Memory, _only(connection, key, query.with_for_update() if lock else query))


def check_exists(connection: Connection, key: Key) -> None:
    """Check that there is a memory.

    Raises:
        NotFound: it does not exist, or has expired.
    """
    _only(connection, key, select(memories.c.version).where(of(memories, key), _alive()))


def find_version(connection: Connection, key: Key, version: int) -> Memory:
    """Read a memory for a change, if it has this version.

    Raises:
        NotFound: see `find`.
        Stale: it has another version.
    """
    memory = find(connection, key, lock=True)
    if memory.version != version:
        raise Stale(f"the memory {key} has version {memory.version}, not {version}; load it again and repeat the change")
    return memory


def summaries(connection: Connection, tenant: str, after: str, limit: int) -> list[Summary]:
    """A tenant's memories, by name, after the one given."""
    query = (
        select(memories.c.tenant, memories.c.memory, *columns(memories, Summary))
        .where(memories.c.tenant == tenant, memories.c.memory > after, _alive())
        .order_by(memories.c.memory)
        .limit(limit)
    )
    return [_record(Summary, row) for row in connection.execute(query)]


def change(connection: Connection, memory: Memory) -> Memory:
    """Store the new contents of a memory, if it is still the one that was loaded.

    Returns:
        The memory as it is stored now, with the next version.

    Raises:
        NotFound: see `find`.
        Stale: it was changed meanwhile, or deleted and made anew.
    """
    now = time.time()
    changed = replace(memory, version=memory.version + 1, updated=now, expires=expiry(now, memory.ttl))
    # Its time of creation tells a memory from a deleted one of the same name and version.
    loaded = (memories.c.version == memory.version) & (memories.c.created == memory.created)
    query = update(memories).where(of(memories, memory.key), loaded, _alive())
    if not connection.execute(query.values({name: getattr(changed, name) for name in CHANGES})).rowcount:
        check_exists(connection, memory.key)
        raise Stale(f"the memory {memory.key} was changed since it was loaded; load it again and repeat the change")
    return changed


def remove(connection: Connection, key: Key) -> None:
    """Delete a memory with its journal and its snapshots, which go with it.

    Raises:
        NotFound: it does not exist.
    """
    if not connection.execute(delete(memories).where(of(memories, key))).rowcount:
        raise NotFound(f"there is no memory {key} to delete; names() lists those that exist")


def remove_expired(connection: Connection) -> int:
    """Delete expired memories; return how many."""
    return connection.execute(delete(memories).where(~_alive())).rowcount


def _alive() -> ColumnElement[bool]:
    return or_(memories.c.expires.is_(None), memories.c.expires > time.time())


def _only(connection: Connection, key: Key, query: Select[Any]) -> Row[Any]:
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"the memory {key} does not exist, or has expired; create it first")
    return row


def _record(kind: type[Any], row: Row[Any]) -> Any:
    fields = dict(row._mapping)
    return kind(key=Key(fields.pop("tenant"), fields.pop("memory")), **fields)

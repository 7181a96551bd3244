"""Who may work on a memory just now. Every function runs in a transaction of its caller."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, delete, or_
from sqlalchemy.dialects import postgresql, sqlite

from deltamem.store.records import Key
from deltamem.store.tables import leases, of

# Both databases have the same extension of INSERT, under two names.
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def take(connection: Connection, key: Key, holder: str, seconds: float) -> bool:
    """Take or renew a lease, if it is free, over, or the holder's already; return whether it is the holder's now."""
    now = time.time()
    lease = INSERTS[connection.dialect.name](leases).values(
        tenant=key.tenant, memory=key.memory, holder=holder, until=now + seconds
    )
    taken = lease.on_conflict_do_update(
        index_elements=[leases.c.tenant, leases.c.memory],
        set_={"holder": lease.excluded.holder, "until": lease.excluded.until},
        where=or_(leases.c.holder == holder, leases.c.until <= now),
    )
    return connection.execute(taken.returning(leases.c.holder)).one_or_none() is not None


def give_back(connection: Connection, key: Key, holder: str) -> None:
    """End a lease, if it is the holder's."""
    connection.execute(delete(leases).where(of(leases, key), leases.c.holder == holder))


def remove_ended(connection: Connection) -> None:
    """Delete leases that are over."""
    connection.execute(delete(leases).where(leases.c.until <= time.time()))

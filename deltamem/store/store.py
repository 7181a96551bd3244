"""Store: the memories of many users in a database."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from deltamem.store import journal_rows, lease_rows, memory_rows, snapshot_rows
from deltamem.store.database import Database
from deltamem.store.errors import StoreError
from deltamem.store.migrations import migrate
from deltamem.store.records import (
    Contents,
    Entry,
    Key,
    Memory,
    Snapshot,
    SnapshotSummary,
    Summary,
    Turn,
    check_name,
    check_seconds,
)

SALT_BYTES = 16


class Store:
    """The memories of many tenants. Threads can share a store, and several processes a database.

    Each call is one transaction. A memory that changed since it was loaded is not overwritten: see `save`. After a call that
    deletes, a SQLite file has nothing left of what was deleted; PostgreSQL overwrites it with its own vacuum. The clocks of
    several machines should agree to well within the leases and lifetimes.

    Every method raises `Unavailable` if the database cannot be reached or is locked too long; when it is back, the store
    works again.

    Args:
        url: the path of a SQLite file, `sqlite:///PATH`, or `postgresql://USER@HOST/NAME`. A new database gets its tables,
            an older one those of this version; a new file can be read only by its owner.

    Raises:
        ValueError: the URL is not accepted, or a package is missing.
        StoreError: a newer deltamem wrote the database.
        Unavailable: see above.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self._database = Database(url)
        try:
            with self._database.writing() as connection:
                migrate(connection)
        except BaseException:
            self.close()
            raise

    def create(self, key: Key, state: bytes, *, journal: bool = False, ttl: float | None = None, tokens: int = 0) -> Memory:
        """Add a memory.

        Args:
            key: its name.
            state: its contents.
            journal: whether its messages are kept.
            ttl: how many seconds it stays after each change; None for ever.
            tokens: the number of tokens written to it so far.

        Raises:
            Exists: there is one of this name.
            ValueError: the ttl is not accepted.
        """
        if ttl is not None:
            check_seconds("ttl", ttl)
        now = time.time()
        memory = Memory(
            key=key,
            version=1,
            created=now,
            updated=now,
            ttl=ttl,
            expires=memory_rows.expiry(now, ttl),
            state=state,
            tokens=tokens,
            turn=0,
            journal=journal,
            salt=os.urandom(SALT_BYTES),
            seen=(),
        )
        with self._database.writing() as connection:
            memory_rows.add(connection, memory)
        return memory

    def load(self, key: Key) -> Memory:
        """Read a memory.

        Raises:
            NotFound: it does not exist, or has expired.
        """
        with self._database.reading() as connection:
            return memory_rows.find(connection, key)

    def names(self, tenant: str, after: str = "", limit: int = 100) -> list[Summary]:
        """A tenant's memories without their contents, sorted by name: at most `limit` of those after the name `after`.

        Raises:
            ValueError: a name is not accepted.
        """
        check_name("tenant", tenant)
        if after:
            check_name("memory", after)
        with self._database.reading() as connection:
            return memory_rows.summaries(connection, tenant, after, limit)

    def save(self, memory: Memory, *, entries: Sequence[Entry] = (), turn: Turn | None = None) -> Memory:
        """Store a memory's new state, seen, tokens and turn, and add to its journal; its time to live begins anew.

        Args:
            memory: what `load` or the last change returned, with its new contents.
            entries: new messages of the journal.
            turn: the turn that brought them, whose number is the memory's `turn`.

        Returns:
            The memory as stored, with the next version.

        Raises:
            NotFound: it does not exist, or has expired.
            Stale: it was changed since it was loaded.
            StoreError: it keeps no journal, or the journal has one of the messages or the turn already.
        """
        if entries and not memory.journal:
            raise StoreError(f"the memory {memory.key} keeps no messages; create it with journal=True, or save without entries")
        if turn is not None and turn.number != memory.turn:
            raise StoreError(f"the turn {turn.number} does not belong to a memory in turn {memory.turn}; give both one number")
        with self._database.writing() as connection:
            changed = memory_rows.change(connection, memory)
            journal_rows.add(connection, memory.key, entries, () if turn is None else (turn,))
        return changed

    def delete(self, key: Key) -> None:
        """Delete a memory with its journal and snapshots.

        Raises:
            NotFound: it does not exist.
        """
        with self._database.writing() as connection:
            memory_rows.remove(connection, key)
        self._database.wipe()

    def entries(self, key: Key) -> list[Entry]:
        """The messages of a memory's journal, in order.

        Raises:
            NotFound: there is no such memory.
        """
        with self._database.reading() as connection:
            memory_rows.check_exists(connection, key)
            return journal_rows.read_entries(connection, key)

    def turns(self, key: Key, since: int = 0) -> list[Turn]:
        """The turns of a memory from the number `since` on, in order.

        Raises:
            NotFound: there is no such memory.
        """
        with self._database.reading() as connection:
            memory_rows.check_exists(connection, key)
            return journal_rows.read_turns(connection, key, since)

    def contents(self, key: Key) -> Contents:
        """Read everything that is kept of a memory.

        Raises:
            NotFound: there is no such memory.
        """
        with self._database.reading() as connection:
            return Contents(
                memory_rows.find(connection, key),
                journal_rows.read_entries(connection, key),
                journal_rows.read_turns(connection, key, 0),
                snapshot_rows.read(connection, key),
            )

    def put(self, contents: Contents) -> Memory:
        """Add a memory with its journal and snapshots, such as one from another store; its time to live begins anew.

        Returns:
            The memory as stored, with version 1.

        Raises:
            Exists: there is one of this name.
            StoreError: the journal has one message or turn twice.
            ValueError: a name or the ttl is not accepted.
        """
        memory, now = contents.memory, time.time()
        if memory.ttl is not None:
            check_seconds("ttl", memory.ttl)
        for snapshot in contents.snapshots:
            check_name("snapshot", snapshot.name)
        added = replace(memory, version=1, created=now, updated=now, expires=memory_rows.expiry(now, memory.ttl))
        with self._database.writing() as connection:
            memory_rows.add(connection, added)
            journal_rows.add(connection, memory.key, contents.entries, contents.turns)
            snapshot_rows.replace(connection, memory.key, 0, contents.snapshots)
        return added

    def rewrite(
        self, memory: Memory, *, removed: Sequence[str], turns: Sequence[Turn], snapshots: Sequence[Snapshot]
    ) -> Memory:
        """Store what remains of a memory after messages were forgotten.

        Turns and snapshots may contain what is forgotten from the first turn on that is given or has a removed message. So from
        this turn on, only those given remain. Messages of the journal remain unless they are removed.

        Args:
            memory: what `load` or the last change returned, with its new contents.
            removed: the ids of the messages to delete.
            turns: new versions of the turns that remain.
            snapshots: new versions of the snapshots that remain; one of an earlier turn replaces the one of its name.

        Returns:
            The memory as stored, with the next version.

        Raises:
            NotFound: it does not exist, has expired, or has no such message.
            Stale: it was changed since it was loaded.
            StoreError: two of the turns have one number, or two of the snapshots one name.
        """
        key = memory.key
        with self._database.writing() as connection:
            changed = memory_rows.change(connection, memory)
            numbers = [*journal_rows.remove_entries(connection, key, removed), *(turn.number for turn in turns)]
            first = min(numbers, default=memory.turn + 1)
            journal_rows.remove_turns(connection, key, first)
            journal_rows.add(connection, key, (), turns)
            snapshot_rows.replace(connection, key, first, snapshots)
        self._database.wipe()
        return changed

    def snapshot(self, key: Key, name: str, version: int) -> Snapshot:
        """Keep a memory as it is now under a name.

        Raises:
            ValueError: the name is not accepted.
            NotFound: there is no such memory.
            Stale: it does not have this version.
            Exists: it has a snapshot of this name.
        """
        check_name("snapshot", name)
        with self._database.writing() as connection:
            memory = memory_rows.find_version(connection, key, version)
            kept = Snapshot(name, time.time(), memory.turn, memory.tokens, memory.state, memory.seen)
            snapshot_rows.add(connection, key, kept)
        return kept

    def snapshots(self, key: Key) -> list[SnapshotSummary]:
        """A memory's snapshots without their contents, the oldest first.

        Raises:
            NotFound: there is no such memory.
        """
        with self._database.reading() as connection:
            memory_rows.check_exists(connection, key)
            return snapshot_rows.summaries(connection, key)

    def rollback(self, key: Key, name: str, version: int) -> Memory:
        """Make a memory what it was when a snapshot was taken; later turns, their messages and later snapshots are deleted.

        Returns:
            The memory as stored, with the next version.

        Raises:
            ValueError: the name is not accepted.
            NotFound: there is no such memory or snapshot.
            Stale: the memory does not have this version.
        """
        check_name("snapshot", name)
        with self._database.writing() as connection:
            memory = memory_rows.find_version(connection, key, version)
            kept = snapshot_rows.find(connection, key, name)
            earlier = replace(memory, state=kept.state, tokens=kept.tokens, turn=kept.turn, seen=kept.seen)
            changed = memory_rows.change(connection, earlier)
            journal_rows.cut(connection, key, kept.turn)
            snapshot_rows.replace(connection, key, kept.turn + 1, ())
        self._database.wipe()
        return changed

    def fork(self, key: Key, to: Key) -> Memory:
        """Copy a memory with its journal and snapshots under another name; the salt stays, because digests depend on it.

        Raises:
            NotFound: there is no such memory.
            Exists: there is one of the other name.
        """
        with self._database.writing() as connection:
            memory, now = memory_rows.find(connection, key, lock=True), time.time()
            expires = memory_rows.expiry(now, memory.ttl)
            fork = replace(memory, key=to, version=1, created=now, updated=now, expires=expires)
            memory_rows.add(connection, fork)
            journal_rows.copy(connection, key, to)
            snapshot_rows.copy(connection, key, to)
        return fork

    def lease(self, key: Key, holder: str, seconds: float) -> bool:
        """Reserve a name, also one of a memory that does not exist yet, or renew the holder's lease.

        Leases are agreements between processes: no other method asks for one.

        Returns:
            Whether the lease is the holder's now. It is not if another's has not ended.

        Raises:
            ValueError: the number of seconds is not accepted.
        """
        check_seconds("a lease of", seconds)
        with self._database.writing() as connection:
            return lease_rows.take(connection, key, holder, seconds)

    def release(self, key: Key, holder: str) -> None:
        """End a lease; nothing happens if it is not the holder's."""
        with self._database.writing() as connection:
            lease_rows.give_back(connection, key, holder)

    def expire(self) -> int:
        """Delete the memories that have expired, and leases that have ended; return the number of memories.

        A server calls it now and then. It also removes what other calls had to leave in a SQLite log that was being read.
        """
        with self._database.writing() as connection:
            expired = memory_rows.remove_expired(connection)
            lease_rows.remove_ended(connection)
        self._database.wipe()
        return expired

    def close(self) -> None:
        """Close all connections to the database."""
        self._database.close()

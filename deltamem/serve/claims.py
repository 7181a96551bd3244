"""Claims: one turn at a time on a memory, in this process and in all that share the store."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

from deltamem.store import Key, Store, Unavailable

# Seconds: how long a lease outlives its process, how often it is renewed, and how often another's is looked at.
LEASE, RENEWED, ASKED = 20.0, 5.0, 0.1


class InUseError(RuntimeError):
    """Another turn has been working on the memory for too long."""


class Claims:
    """Gives memories to one turn at a time.

    Args:
        store: the store that holds the leases.
        patience: how many seconds a turn waits for a memory.
    """

    def __init__(self, store: Store, patience: float = 60.0) -> None:
        self._store, self._patience = store, patience
        self._holder = uuid.uuid4().hex
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def claimed(self, *keys: Key) -> AsyncIterator[None]:
        """Hold memories for the block.

        Raises:
            InUseError: one of them is in use for too long.
        """
        if not keys:
            yield
            return
        first, *others = sorted(keys)  # in one order, so that two claims never wait for each other
        async with self._claimed(first), self.claimed(*others):
            yield

    @asynccontextmanager
    async def _claimed(self, key: Key) -> AsyncIterator[None]:
        end = time.monotonic() + self._patience
        lock = self._locks.setdefault(key, asyncio.Lock())
        error = InUseError(f"the memory {key} has been in use for {self._patience:.0f} seconds; try again later")
        try:
            await asyncio.wait_for(lock.acquire(), self._patience)
        except asyncio.TimeoutError:
            raise error from None
        try:
            while not await asyncio.to_thread(self._store.lease, key, self._holder, LEASE):
                if time.monotonic() > end:
                    raise error
                await asyncio.sleep(ASKED)
            renewal = asyncio.create_task(self._renew(key))
            try:
                yield
            finally:
                renewal.cancel()
                with suppress(Unavailable):  # what was done is done, and the lease ends by itself
                    await asyncio.to_thread(self._store.release, key, self._holder)
        finally:
            lock.release()

    async def _renew(self, key: Key) -> None:
        """Keep a lease. If that fails, another replica may take the memory; its saves and ours check each other's versions."""
        while True:
            await asyncio.sleep(RENEWED)
            with suppress(Unavailable):  # the database may be back the next time
                await asyncio.to_thread(self._store.lease, key, self._holder, LEASE)

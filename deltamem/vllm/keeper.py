"""Where memories are kept between requests: in a store, as `deltamem serve` keeps them, or in files."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from deltamem.memory.state import DeltaMemState
from deltamem.store import Key, NotFound, Store, Unavailable

# Seconds: how long a lease outlives its process; the same as the server's.
LEASE = 20.0
FILES = "files:"
# Whoever runs an engine in its own process keeps the memories, and hands each over for one request.
IN_PROCESS = "process:"


@dataclass(frozen=True)
class Kept:
    """A memory as it was loaded.

    Args:
        key: its name.
        state: its contents; None if it does not exist yet.
        record: what the keeper knows of it.
    """

    key: Key
    state: DeltaMemState | None
    record: Any = None


class Keeper(Protocol):
    """Keeps memories. Its methods are called by one thread."""

    def claim(self, key: Key) -> bool:
        """Reserve a memory against other processes, or renew the claim; returns whether it is ours now."""
        ...

    def release(self, key: Key) -> None:
        """End a claim."""
        ...

    def load(self, key: Key, writes: bool) -> Kept:
        """Read a memory.

        Args:
            key: its name.
            writes: whether it is to be written afterwards.

        Raises:
            ValueError: it cannot be read, or may not be written by tokens.
        """
        ...

    def save(self, kept: Kept, state: DeltaMemState) -> None:
        """Store a memory's new contents.

        Raises:
            ValueError, OSError: it was changed by someone else, or cannot be stored.
        """
        ...


def open_keeper(place: str) -> Keeper:
    """Open the place where memories are kept: "files:FOLDER", `IN_PROCESS`, or the URL of a store.

    Raises:
        ValueError, OSError: it cannot be opened; see `Store`.
    """
    if place == IN_PROCESS:
        return HANDED_OVER
    if place.startswith(FILES):
        return FileKeeper(Path(place.removeprefix(FILES)))
    return StoreKeeper(Store(place))


class StoreKeeper:
    """Keeps memories in a store.

    Args:
        store: the store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._holder = uuid.uuid4().hex

    def claim(self, key: Key) -> bool:
        """See `Keeper`: by a lease, which other servers on the store respect."""
        return self._store.lease(key, self._holder, LEASE)

    def release(self, key: Key) -> None:
        """See `Keeper`. If the database is away, the lease ends by itself."""
        with suppress(Unavailable):
            self._store.release(key, self._holder)

    def load(self, key: Key, writes: bool) -> Kept:
        """See `Keeper`."""
        try:
            memory = self._store.load(key)
        except NotFound:
            return Kept(key, None)
        if writes and memory.journal:
            raise ValueError(
                f"the memory {key} keeps a journal of its messages, and vLLM sees tokens without messages; give 'write': "
                "false, or write it with `deltamem serve`"
            )
        return Kept(key, DeltaMemState.from_bytes(memory.state), memory)

    def save(self, kept: Kept, state: DeltaMemState) -> None:
        """See `Keeper`. A write is one turn of the memory."""
        memory, data, tokens = kept.record, state.to_bytes(), state.tokens[0]
        if memory is None:
            memory = self._store.create(kept.key, data, tokens=tokens)
        self._store.save(replace(memory, state=data, tokens=tokens, turn=memory.turn + 1))


class FileKeeper:
    """Keeps each memory in a file, `TENANT/NAME.safetensors`, which `DeltaMemState.load` reads. For one process.

    Args:
        folder: the folder; it is made with the first memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def claim(self, key: Key) -> bool:
        """See `Keeper`."""
        return True

    def release(self, key: Key) -> None:
        """See `Keeper`."""

    def load(self, key: Key, writes: bool) -> Kept:
        """See `Keeper`."""
        path = self._path(key)
        return Kept(key, DeltaMemState.load(path) if path.exists() else None)

    def save(self, kept: Kept, state: DeltaMemState) -> None:
        """See `Keeper`."""
        path = self._path(kept.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        state.save(path)

    def _path(self, key: Key) -> Path:
        # A name may be "." or "..", but no name has a slash, and none is a path once it has an ending.
        return self._folder / f"{key.tenant}.tenant" / f"{key.memory}.safetensors"


class ProcessKeeper:
    """Memories that are handed over within a process, each under a name that only one request has."""

    def __init__(self) -> None:
        self._states: dict[Key, DeltaMemState] = {}

    def put(self, key: Key, state: DeltaMemState) -> None:
        """Hand a memory over."""
        self._states[key] = state

    def get(self, key: Key) -> DeltaMemState:
        """Look at a memory."""
        return self._states[key]

    def drop(self, key: Key) -> None:
        """Forget a memory."""
        del self._states[key]

    def claim(self, key: Key) -> bool:
        """See `Keeper`."""
        return True

    def release(self, key: Key) -> None:
        """See `Keeper`."""

    def load(self, key: Key, writes: bool) -> Kept:
        """See `Keeper`."""
        state = self._states[key]
        return Kept(key, state if state.tokens[0] else None)

    def save(self, kept: Kept, state: DeltaMemState) -> None:
        """See `Keeper`."""
        self._states[kept.key] = state


HANDED_OVER = ProcessKeeper()

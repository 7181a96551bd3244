"""Processes that work on a store, to be killed or to compete. A module of its own, for the processes to import."""

from contextlib import suppress
from multiprocessing.connection import Connection

from stored import KEY, told

from deltamem.store import Stale, Store


def save_forever(url: str, acknowledged: Connection) -> None:
    store = Store(url)
    memory = store.load(KEY)
    while True:
        memory = told(store, memory)
        acknowledged.send(memory.version)


def add_turns(url: str, turns: int) -> None:
    """Add turns beside others who do so too; repeat those that others forestalled."""
    store = Store(url)
    while turns:
        with suppress(Stale):
            told(store, store.load(KEY))
            turns -= 1
    store.close()


def take_lease(url: str, holder: str) -> bool:
    store = Store(url)
    try:
        return store.lease(KEY, holder, 60)
    finally:
        store.close()

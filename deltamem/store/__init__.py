"""A database of users' memories, in SQLite or PostgreSQL. States are bytes to it: this package knows nothing about models."""

from deltamem.store.errors import Exists, NotFound, Stale, StoreError, Unavailable
from deltamem.store.records import Contents, Entry, Key, Memory, Snapshot, SnapshotSummary, Summary, Turn
from deltamem.store.store import Store

__all__ = [
    "Contents",
    "Entry",
    "Exists",
    "Key",
    "Memory",
    "NotFound",
    "Snapshot",
    "SnapshotSummary",
    "Stale",
    "Store",
    "StoreError",
    "Summary",
    "Turn",
    "Unavailable",
]

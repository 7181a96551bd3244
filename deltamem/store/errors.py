"""What can go wrong in a store."""

from __future__ import annotations


class StoreError(ValueError):
    """The store refuses a call; nothing was changed."""


class Exists(StoreError):
    """The name is taken."""


class NotFound(StoreError):
    """There is no such memory, message or snapshot, or it has expired."""


class Stale(StoreError):
    """The memory was changed since it was loaded."""


class Unavailable(ConnectionError):
    """The database cannot be reached, is locked too long, or cannot do its work.

    A call that was interrupted while it committed may have been stored; the memory's version tells.
    """

"""What the running thread is computing, for hooks that no argument reaches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from deltamem.forward.corrections import Reads
from deltamem.forward.decode import OneToken
from deltamem.forward.memory_pass import MemoryPass


class _Current(threading.local):
    """Values of this thread alone.

    Args:
        reads: of the attention module that runs.
        memory: the pass, in models that hand no keywords down to their attention.
    """

    reads: Reads | OneToken | None = None
    memory: MemoryPass | None = None


current = _Current()


@contextmanager
def carrying(memory: MemoryPass | None) -> Iterator[None]:
    """Make a pass the current one."""
    outer, current.memory = current.memory, memory
    try:
        yield
    finally:
        current.memory = outer

"""What the running thread is computing, for hooks that no argument reaches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from deltamem.forward.corrections import Corrections
from deltamem.forward.decode import DecodeStep
from deltamem.forward.memory_pass import MemoryPass


class _Running(threading.local):
    """Values of this thread alone.

    Args:
        corrections: of the attention module that runs.
        memory_pass: the pass, in models that hand no keywords down to their attention.
    """

    corrections: Corrections | DecodeStep | None = None
    memory_pass: MemoryPass | None = None


running = _Running()


@contextmanager
def running_in(memory: MemoryPass | None) -> Iterator[None]:
    """Make a pass the running one."""
    outer, running.memory_pass = running.memory_pass, memory
    try:
        yield
    finally:
        running.memory_pass = outer

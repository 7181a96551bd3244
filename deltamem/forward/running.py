"""What the running thread is computing, for hooks that no argument reaches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deltamem.forward.corrections import Correcting
from deltamem.forward.memory_pass import MemoryPass

# The keyword under which a pass travels from the top of the model to its attention layers.
PASS_KEYWORD = "delta_mem_pass"


class _Running(threading.local):
    """Values of this thread alone.

    Args:
        corrections: of the attention layer that runs.
        memory_pass: the pass, in models that hand no keywords down to their attention.
    """

    corrections: Correcting | None = None
    memory_pass: MemoryPass | None = None


running = _Running()


def pass_in(kwargs: Mapping[str, Any]) -> MemoryPass | None:
    """The memory pass that a call of the model, or of an attention layer, belongs to; None if no adapter is active."""
    memory: MemoryPass | None = kwargs.get(PASS_KEYWORD)
    return running.memory_pass if memory is None else memory


@contextmanager
def running_in(memory: MemoryPass | None) -> Iterator[None]:
    """Make a pass the running one."""
    outer, running.memory_pass = running.memory_pass, memory
    try:
        yield
    finally:
        running.memory_pass = outer

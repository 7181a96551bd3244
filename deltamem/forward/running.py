"""Thread-local values for hooks that receive no argument: the running pass, and its corrections of the running layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deltamem.forward.corrections import Correcting
from deltamem.forward.memory_pass import MemoryPass

# The keyword argument that carries a pass from the top of the model to its attention layers.
PASS_KEYWORD = "delta_mem_pass"


class _Running(threading.local):
    """Thread-local values.

    Args:
        corrections: the corrections of the running attention layer.
        memory_pass: the running pass, in models that do not hand keyword arguments down to their attention.
    """

    corrections: Correcting | None = None
    memory_pass: MemoryPass | None = None


running = _Running()


def pass_in(kwargs: Mapping[str, Any]) -> MemoryPass | None:
    """The memory pass to which a call of the model or of an attention layer belongs; None if no adapter is active."""
    memory: MemoryPass | None = kwargs.get(PASS_KEYWORD)
    return running.memory_pass if memory is None else memory


@contextmanager
def running_in(memory: MemoryPass | None) -> Iterator[None]:
    """Make a pass the running one within a block."""
    outer, running.memory_pass = running.memory_pass, memory
    try:
        yield
    finally:
        running.memory_pass = outer

"""What the running thread is computing, for hooks that no argument reaches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from deltamem.one_token import OneToken
from deltamem.parts import AdapterParts
from deltamem.passes import MemoryPass
from deltamem.placement import fetched
from deltamem.projection import Projection


class Reads(NamedTuple):
    """What an attention module has read from its memory, for the hooks on its projections.

    Args:
        values: `[batch, tokens, num_states * r]`, contiguous.
        parts: of the adapter that read.
        in_place: whether the projections' outputs may be changed, as no gradients are computed.
        valid: see `MemoryPass.valid_for_gradients`.
    """

    values: Tensor
    parts: AdapterParts
    in_place: bool
    valid: Tensor | None

    def correct(self, role: str, projection: Projection, output: Tensor) -> Tensor:
        """The output of a role's projection, `[batch, tokens, out_features]`, with its correction if there is one."""
        linear = self.parts.corrections.get(role)
        if linear is None:
            return output
        weight = fetched(linear, "weight")
        if self.in_place:
            projection.correct_(output, self.values, weight, self.parts.scale)
            return output
        corrected = projection.corrected(output, self.values, weight, self.parts.scale)
        return corrected if self.valid is None else torch.where(self.valid[:, :, None], corrected, output)


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

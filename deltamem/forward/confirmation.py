"""What a compiled graph asks when it runs: whether the memory in it is the caller's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deltamem.forward.cuda_graphs import NOT_IN_A_GRAPH
from deltamem.forward.scope import MemoryScope, entered_scopes
from deltamem.memory.snapshot import Snapshot


@torch.library.custom_op("deltamem::confirm_scope", mutates_args=(), tags=NOT_IN_A_GRAPH)
def confirm_scope(states: Tensor, ticket: Tensor) -> Tensor:
    """A copy of the states, if the block with this ticket is the caller's own; part of compiled graphs.

    Not of CUDA graphs: these would not ask again.

    Raises:
        RuntimeError: it is another thread's or task's.
    """
    blocks = entered_scopes()
    block = next((block for block in blocks if block.ticket.item() == ticket.item()), None)
    if block is None or MemoryScope.find(block.owner) is not block:
        raise RuntimeError(
            "a compiled model ran while another thread or task had a memory of it open; nothing was read or written. Let one "
            "at a time use a compiled model, or call it uncompiled"
        )
    return states.clone()


@confirm_scope.register_fake
def _shape(states: Tensor, ticket: Tensor) -> Tensor:
    return torch.empty_like(states)


confirm_scope.register_autograd(lambda ctx, gradient: (gradient, None))


def confirmed(snapshot: Snapshot, block: MemoryScope) -> Snapshot:
    """The same memory, which a compiled graph can only read if the block is the caller's own."""
    first, *_ = snapshot.states
    return replace(snapshot, states={**snapshot.states, first: confirm_scope(snapshot.states[first], block.ticket)})

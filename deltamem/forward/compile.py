"""A memory in compiled passes: two operators that torch.compile does not trace and keeps out of CUDA graphs.

`torch.compile(mode="reduce-overhead")` records CUDA graphs, and splits them at operators that are tagged as unsafe, like these
two. A graph overwrites its outputs when it runs again, but a memory outlives the pass. And a graph would not check again whose
memory it reads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deltamem.forward.scope import MemoryScope, entered_scopes
from deltamem.memory.snapshot import Snapshot
from deltamem.versions import NOT_IN_A_CUDA_GRAPH


def outside_graphs(outcome: Snapshot) -> Snapshot:
    """The memory after a compiled pass, copied if it may come from a CUDA graph."""
    if torch.is_grad_enabled():
        return outcome
    return replace(
        outcome,
        parts={part: copy_outside(tensor) for part, tensor in outcome.parts.items()},
        tokens=copy_outside(outcome.tokens),
    )


def confirmed(snapshot: Snapshot, scope: MemoryScope) -> Snapshot:
    """The same memory, which a compiled graph can read only if the scope is the caller's."""
    first, *_ = snapshot.parts
    return replace(snapshot, parts={**snapshot.parts, first: confirm_scope(snapshot.parts[first], scope.ticket)})


@torch.library.custom_op("deltamem::copy_outside", mutates_args=(), **NOT_IN_A_CUDA_GRAPH)
def copy_outside(tensor: Tensor) -> Tensor:
    """A copy that no CUDA graph owns."""
    return tensor.clone()


@copy_outside.register_fake
def _(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor)


@torch.library.custom_op("deltamem::confirm_scope", mutates_args=(), **NOT_IN_A_CUDA_GRAPH)
def confirm_scope(states: Tensor, ticket: Tensor) -> Tensor:
    """A copy of the states, if the scope with this ticket is the caller's; part of compiled graphs.

    Raises:
        RuntimeError: the scope belongs to another thread or task.
    """
    scope = next((scope for scope in entered_scopes() if scope.ticket.item() == ticket.item()), None)
    if scope is None or MemoryScope.find(scope.owner) is not scope:
        raise RuntimeError(
            "a compiled model ran while another thread or task had a memory of it open; nothing was read or written. Use a "
            "compiled model from one thread or task at a time, or call it uncompiled"
        )
    return states.clone()


@confirm_scope.register_fake
def _(states: Tensor, ticket: Tensor) -> Tensor:
    return torch.empty_like(states)


confirm_scope.register_autograd(lambda ctx, gradient: (gradient, None))

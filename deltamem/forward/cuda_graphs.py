"""A memory beside CUDA graphs: what a graph returns is overwritten when it runs again, and a memory outlives the pass.

`torch.compile(mode="reduce-overhead")` records graphs, and cuts them at the operators that are tagged as unsafe in them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deltamem.memory.snapshot import Snapshot

NOT_IN_A_GRAPH = (torch.Tag.cudagraph_unsafe,)


def outside_graphs(outcome: Snapshot) -> Snapshot:
    """The memory that a compiled pass leaves, in tensors of its own where it may come from a CUDA graph.

    The states of all layers are one tensor, so that there are few operators outside of the graphs. Where they are on several
    devices there are no graphs.
    """
    if torch.is_grad_enabled() or len({state.device for state in outcome.states.values()}) != 1:
        return outcome
    states, tokens = copy_outside(torch.stack([*outcome.states.values()]), outcome.tokens)
    return replace(outcome, states=dict(zip(outcome.states, states.unbind(), strict=True)), tokens=tokens)


@torch.library.custom_op("deltamem::copy_outside", mutates_args=(), tags=NOT_IN_A_GRAPH)
def copy_outside(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Copies that no CUDA graph owns."""
    return states.clone(), tokens.clone()


@copy_outside.register_fake
def _(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(states), torch.empty_like(tokens)

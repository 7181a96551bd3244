"""FSDP: weights that are sharded over processes and gathered only while their module runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from deltamem.memory.snapshot import Snapshot


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` (FSDP2) was applied to the model or to a part of it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def after_output(snapshot: Snapshot, output: Any) -> Snapshot:
    """The same memory, made to depend on the model's output, so that FSDP gathers weights before the backward pass.

    FSDP gathers a layer's weights again when the gradient of its output is computed. The last layer of a write pass may receive
    gradients through the memory alone, and would find its weights freed.

    Args:
        snapshot: the memory after a pass.
        output: the return value of the model.
    """
    nothing = output[0][:0].sum()  # zero, with zero gradients
    return replace(snapshot, parts={part: tensor + nothing.to(tensor.device) for part, tensor in snapshot.parts.items()})

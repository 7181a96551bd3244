"""FSDP: weights that are split over processes, and whole only while the module that they belong to runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from deltamem.memory.snapshot import Snapshot


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` (FSDP2) was applied to the model or a part of it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def after_output(snapshot: Snapshot, output: Any) -> Snapshot:
    """The same memory, whose gradients are computed after that of the model's output.

    FSDP makes a layer's weights whole again when the gradient of its output is computed. To the last layer that of a write
    pass may come by the memory alone, and would meet weights that were freed.

    Args:
        snapshot: the memory after a pass.
        output: what the model returned.
    """
    nothing = output[0][:0].sum()  # zero, and so are its gradients
    return replace(snapshot, parts={part: tensor + nothing.to(tensor.device) for part, tensor in snapshot.parts.items()})

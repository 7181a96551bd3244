"""Activation checkpointing where gradients pass through a memory."""

from __future__ import annotations

import logging
from functools import partial

from torch import nn

logger = logging.getLogger(__name__)


def avoid_reentrant(model: nn.Module) -> None:
    """Make activation checkpointing of a transformers model non-reentrant.

    The reentrant kind runs a layer without gradients, and knows no way for them but the layer's tensor arguments and outputs.
    A memory that links two passes is neither, so its gradients would be lost without a word.
    """
    changed = False
    for module in model.modules():
        checkpoint = vars(module).get("_gradient_checkpointing_func")
        if isinstance(checkpoint, partial) and checkpoint.keywords.get("use_reentrant"):
            vars(module)["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
            changed = True
    if changed:
        logger.warning(
            "reentrant activation checkpointing loses the gradients between the passes of a memory; set to use_reentrant=False"
        )

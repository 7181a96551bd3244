"""Activation checkpointing in training that backpropagates through a memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn

from deltamem.forward.running import running, running_in

logger = logging.getLogger(__name__)


def avoid_reentrant(model: nn.Module) -> None:
    """Make activation checkpointing of a transformers model non-reentrant.

    Reentrant checkpointing backpropagates only through a layer's tensor arguments and outputs. A memory that links two passes
    is neither, so its gradients would be lost silently.
    """
    changed = False
    for module, checkpoint in _checkpointed(model):
        if checkpoint.keywords.get("use_reentrant"):
            _set(module, partial(checkpoint, use_reentrant=False))
            changed = True
    if changed:
        logger.warning(
            "reentrant activation checkpointing loses the gradients between the passes of a memory; set to use_reentrant=False"
        )


def carry_into_recomputation(model: nn.Module) -> None:
    """Let a recomputed layer find the pass in which it ran first.

    This is for models that do not hand keyword arguments down to their attention. There the pass is thread-local, and has ended
    by the time of the backward pass. Only non-reentrant checkpointing can restore it.
    """
    for module, checkpoint in _checkpointed(model):
        if checkpoint.keywords.get("context_fn") is not _contexts:
            _set(module, partial(checkpoint, use_reentrant=False, context_fn=_contexts))


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts of a layer's forward pass and of its recomputation; called in the forward pass."""
    return nullcontext(), running_in(running.memory_pass)


def _checkpointed(model: nn.Module) -> Iterator[tuple[nn.Module, partial[Any]]]:
    """The modules that transformers recomputes, each with its checkpointing function."""
    for module in model.modules():
        checkpoint = vars(module).get("_gradient_checkpointing_func")
        if isinstance(checkpoint, partial):
            yield module, checkpoint


def _set(module: nn.Module, checkpoint: Callable[..., Any]) -> None:
    vars(module)["_gradient_checkpointing_func"] = checkpoint

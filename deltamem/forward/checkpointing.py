"""Activation checkpointing where gradients pass through a memory."""

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

    The reentrant kind runs a layer without gradients, and knows no way for them but the layer's tensor arguments and outputs.
    A memory that links two passes is neither, so its gradients would be lost without a word.
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
    """Let a layer that is computed again find the pass that it was computed in first.

    For models that hand no keywords down to their attention: the pass is the running thread's, and gone when gradients are
    computed. Only the non-reentrant kind can take it along.
    """
    for module, checkpoint in _checkpointed(model):
        if checkpoint.keywords.get("context_fn") is not _contexts:
            _set(module, partial(checkpoint, use_reentrant=False, context_fn=_contexts))


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts of a layer's first and second computation; called when it is computed first."""
    return nullcontext(), running_in(running.memory_pass)


def _checkpointed(model: nn.Module) -> Iterator[tuple[nn.Module, partial[Any]]]:
    """The modules that transformers computes again, each with what does so."""
    for module in model.modules():
        checkpoint = vars(module).get("_gradient_checkpointing_func")
        if isinstance(checkpoint, partial):
            yield module, checkpoint


def _set(module: nn.Module, checkpoint: Callable[..., Any]) -> None:
    vars(module)["_gradient_checkpointing_func"] = checkpoint

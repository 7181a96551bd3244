"""A bare backbone and an adapted one on the same weights, to be timed side by side in one process."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from deltamem.config import VARIANTS, DeltaMemConfig
from deltamem.memory.state import DeltaMemState

# Length of a message where an adapter writes messages or sentences (SSW).
MESSAGE_TOKENS = 64


@dataclass(frozen=True)
class Bare:
    """The backbone alone, as it was before there was any adapter. It has no memory: its blocks do nothing."""

    model: Any

    def writing(self, tokens: Tensor, memory: DeltaMemState | None = None, detach: bool = True) -> AbstractContextManager[Any]:
        """See `Adapted.writing`."""
        return nullcontext()

    def decoding(self, batch: int, memory: DeltaMemState | None = None) -> AbstractContextManager[Any]:
        """See `Adapted.decoding`."""
        return nullcontext()


@dataclass(frozen=True)
class Adapted:
    """The backbone with a δ-mem adapter."""

    model: PeftModel

    def writing(self, tokens: Tensor, memory: DeltaMemState | None = None, detach: bool = True) -> AbstractContextManager[Any]:
        """The block for a pass that writes.

        Args:
            tokens: what is written, `[batch, tokens]`.
            memory: where to; a new memory if None.
            detach: False keeps the autograd graph of what was written.
        """
        memory = self.model.new_memory(len(tokens)) if memory is None else memory
        segments = torch.arange(tokens.shape[1], device=tokens.device) // MESSAGE_TOKENS if self._writes_segments else None
        return self.model.memory(memory, segment_ids=None if segments is None else segments.expand_as(tokens), detach=detach)

    def decoding(self, batch: int, memory: DeltaMemState | None = None) -> AbstractContextManager[Any]:
        """The block for generated tokens: every one is written, unless the adapter writes whole messages: those are only read.

        Args:
            batch: number of rows.
            memory: what it starts from, left as it is; an empty one if None.
        """
        memory = self.model.new_memory(batch) if memory is None else memory.clone()
        return self.model.memory(memory, write=not self._writes_segments)

    @property
    def config(self) -> DeltaMemConfig:
        """The adapter's configuration."""
        return self.model.active_peft_config

    @property
    def _writes_segments(self) -> bool:
        return self.config.writes_segments


Subject = Bare | Adapted


def twins(backbone: nn.Module, adapter: str | None, variant: str) -> tuple[Bare, Adapted]:
    """The bare backbone, and a copy of its modules with an adapter; both use the same weights in memory.

    An adapter changes the model that it is attached to, and disabling it leaves its hooks there: only a model that never had
    one has the bare model's speed.

    Args:
        backbone: a model without an adapter.
        adapter: a trained adapter, a folder or a Hub name; if None, a new one.
        variant: of the new one: "tsw", "ssw" or "msw".
    """
    copied = copy.deepcopy(backbone, {id(tensor): tensor for tensor in chain(backbone.parameters(), backbone.buffers())})
    if adapter is not None:
        return Bare(backbone), Adapted(PeftModel.from_pretrained(copied, adapter, is_trainable=True).eval())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Bare(backbone), Adapted(get_peft_model(copied, VARIANTS[variant](task_type="CAUSAL_LM")).eval())

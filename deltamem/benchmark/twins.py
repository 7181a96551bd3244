"""A bare backbone and an adapted one that share their weights, to be timed side by side in one process."""

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

# Length of a message, for adapters that write messages or sentences (SSW).
MESSAGE_TOKENS = 64


@dataclass(frozen=True)
class Bare:
    """The backbone alone, as it was before any adapter. It has no memory, so its contexts do nothing."""

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
        """Open a memory for a pass that writes.

        Args:
            tokens: the tokens to write, `[batch, tokens]`.
            memory: the memory to write to; None for a new one.
            detach: False keeps the autograd graph of the writes.
        """
        memory = self.model.new_memory(len(tokens)) if memory is None else memory
        segments = torch.arange(tokens.shape[1], device=tokens.device) // MESSAGE_TOKENS if self._writes_segments else None
        return self.model.memory(memory, segment_ids=None if segments is None else segments.expand_as(tokens), detach=detach)

    def decoding(self, batch: int, memory: DeltaMemState | None = None) -> AbstractContextManager[Any]:
        """Open a memory for decoding: each token is written, unless the adapter writes whole messages; then it is only read.

        Args:
            batch: number of rows.
            memory: the initial memory, which stays unchanged; None for an empty one.
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
    """Create the bare backbone, and a copy of its modules with an adapter; both share the same weights in memory.

    An adapter changes the model it is attached to, and disabling it leaves its hooks in place: only a model that never had one
    has the bare model's speed.

    Args:
        backbone: a model without an adapter.
        adapter: a trained adapter, a folder or a Hub name; None for a new one.
        variant: the variant of a new adapter: "tsw", "ssw" or "msw".
    """
    copied = copy.deepcopy(backbone, {id(tensor): tensor for tensor in chain(backbone.parameters(), backbone.buffers())})
    if adapter is not None:
        return Bare(backbone), Adapted(PeftModel.from_pretrained(copied, adapter, is_trainable=True).eval())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Bare(backbone), Adapted(get_peft_model(copied, VARIANTS[variant](task_type="CAUSAL_LM")).eval())

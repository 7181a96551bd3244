"""Context: what a session's model has before it, and the passes that wrote it to the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from deltamem.chat.tokens import ChatTokens
from deltamem.hook.text_decoder import last_place
from deltamem.memory.snapshot import Snapshot
from deltamem.memory.state import DeltaMemState
from deltamem.versions import CACHE


@dataclass(frozen=True)
class Pass:
    """A pass over a part of the context.

    Args:
        end: the number of the context's tokens up to its end.
        start: the memory before it; None where that is what the pass before it left.
        writes: whether its tokens were written: they were not if they only came out of the chat template otherwise than when
            they were.
    """

    end: int
    start: DeltaMemState | None
    writes: bool = True


@dataclass
class Context:
    """The tokens of the messages in a session's context; nothing in it is changed in place but the cache, which only grows.

    Args:
        model: a model with a δ-mem adapter.
        ids: the tokens.
        passes: the passes over them.
        left: what the last one left in the memory.
        cache: their keys and values; None if these are to be computed again.
    """

    model: Any
    ids: tuple[int, ...] = ()
    passes: tuple[Pass, ...] = ()
    left: Snapshot | None = None
    cache: DynamicCache | None = None

    def begins(self, tokens: ChatTokens) -> bool:
        """Whether a chat begins with this context."""
        return tuple(tokens.ids[: len(self.ids)].tolist()) == self.ids

    def read_again(self, tokens: ChatTokens, memory: DeltaMemState) -> None:
        """Let other tokens be the context, which are read, and not written."""
        self.ids = tuple(tokens.ids.tolist())
        self.passes = (Pass(len(self.ids), memory.clone(), writes=False),)
        self.left, self.cache = memory.snapshot, None

    def write(self, tokens: ChatTokens, memory: DeltaMemState) -> None:
        """Write to a memory what a chat that begins with this context has more."""
        cache, known = self.keys_and_values(tokens), len(self.ids)
        # The passes before this one lead to the memory as it is now, unless something else was written in between.
        start = None if memory.snapshot is self.left else memory.clone()
        forward(self.model, tokens.slice(known, len(tokens.ids)), cache, memory)
        self.ids = tuple(tokens.ids.tolist())
        self.passes, self.left = (*self.passes, Pass(len(self.ids), start)), memory.snapshot

    def keys_and_values(self, tokens: ChatTokens) -> DynamicCache:
        """The keys and values; after a load or a failure computed again, from the memories that the passes started from.

        Args:
            tokens: a chat that begins with this context, with its segments.
        """
        if self.cache is None:
            cache, memory, begin = DynamicCache(config=self.model.config), None, 0
            for done in self.passes:
                memory = memory if done.start is None else done.start.clone()
                forward(self.model, tokens.slice(begin, done.end), cache, memory, done.writes)
                begin = done.end
            self.cache = cache
        return self.cache


@torch.no_grad()
def forward(
    model: Any,
    tokens: ChatTokens,
    cache: DynamicCache | None,
    memory: DeltaMemState | None,
    write: bool = True,
    cut: bool = False,
) -> None:
    """Pass tokens through a model.

    Args:
        model: a model with a δ-mem adapter.
        tokens: what is read.
        cache: what it continues; None for nothing.
        memory: it is read, and written unless `write` is false.
        write: whether the tokens are written.
        cut: whether their last segment goes on in the next call.
    """
    in_segments = write and model.active_peft_config.writes_segments
    ids = tokens.ids[None].to(model.device)
    segment_ids = tokens.segment_ids[None].to(model.device) if in_segments else None
    with model.memory(memory, write=write, segment_ids=segment_ids, keep_open=cut and in_segments):
        model(input_ids=ids, **{CACHE: cache}, use_cache=cache is not None, logits_to_keep=last_place(ids))

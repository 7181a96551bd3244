"""Context: the tokens in a session's context, and the passes that wrote them to the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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
        end: the end of the pass, as a position in the context.
        start: the memory before the pass; None if it is the memory after the previous pass.
        writes: whether the pass wrote its tokens. It did not if it only read messages again that were written before, because
            the chat template now renders them differently.
    """

    end: int
    start: DeltaMemState | None
    writes: bool = True


@dataclass
class Context:
    """The tokens of the messages in a session's context. Only the cache is changed in place, and it only grows.

    Args:
        model: a model with a δ-mem adapter.
        ids: the tokens.
        passes: the passes over the tokens.
        left: the memory after the last pass.
        cache: the keys and values of the tokens; None if they must be recomputed.
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
        """Replace the context by other tokens, which are read but not written."""
        self.ids = tuple(tokens.ids.tolist())
        self.passes = (Pass(len(self.ids), memory.clone(), writes=False),)
        self.left, self.cache = memory.snapshot, None

    def write(self, tokens: ChatTokens, memory: DeltaMemState) -> None:
        """Write the rest of a chat that begins with this context to a memory."""
        cache, known = self.keys_and_values(tokens), len(self.ids)
        # The earlier passes lead to the current memory, unless something else was written in between.
        start = None if memory.snapshot is self.left else memory.clone()
        forward(self.model, tokens.slice(known, len(tokens.ids)), cache, memory)
        self.ids = tuple(tokens.ids.tolist())
        self.passes, self.left = (*self.passes, Pass(len(self.ids), start)), memory.snapshot

    def keys_and_values(self, tokens: ChatTokens) -> DynamicCache:
        """The keys and values of the context; after a load or a failure, recomputed from the memories before the passes.

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
) -> Tensor:
    """Pass tokens through a model, and return the logits of the last one, `[1, vocabulary]`.

    Args:
        model: a model with a δ-mem adapter.
        tokens: the tokens.
        cache: the keys and values of the tokens before them; None if there are none.
        memory: the memory to read and, if `write` is true, to write.
        write: whether the tokens are written.
        cut: whether the last segment continues in the next call.
    """
    in_segments = write and model.active_peft_config.writes_segments
    ids = tokens.ids[None].to(model.device)
    segment_ids = tokens.segment_ids[None].to(model.device) if in_segments else None
    with model.memory(memory, write=write, segment_ids=segment_ids, keep_open=cut and in_segments):
        output = model(input_ids=ids, **{CACHE: cache}, use_cache=cache is not None, logits_to_keep=last_place(ids))
    logits: Tensor = output.logits[:, -1]
    return logits

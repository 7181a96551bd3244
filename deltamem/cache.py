"""The memory of a generation, riding in the KV cache: whatever happens to the cache happens to it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DummyLayer, EncoderDecoderCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from deltamem.contents import Contents
from deltamem.passes import MemoryPass, TokenWrites, advance

# transformers 5.24 renamed it; models that are not its own may still have the other name.
CACHE_NAMES = ("cache", "past_key_values")
# What its models are called with.
CACHE = next(name for name in CACHE_NAMES if name in CausalLMOutputWithPast.__dataclass_fields__)

# How many written tokens can be taken back: more than any assisted decoding drafts at once.
WINDOW = 64


@dataclass
class _Step:
    """One recorded pass: enough to undo it, whole or in part.

    Args:
        tokens: its length.
        start: the memory before it, with the batch rows of that time.
        writes: its token writes by module; empty if it wrote none.
        valid: `[batch, tokens]`, which of its tokens count; None if all do.
        changed: whether it changed the memory.
        rows: which row of that time each row of today comes from; None while they are the same.
    """

    tokens: int
    start: Contents
    writes: Mapping[str, TokenWrites]
    valid: Tensor | None
    changed: bool
    rows: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        self.rows = rows if self.rows is None else self.rows[rows.to(self.rows.device)]

    def memory_before(self) -> Contents:
        return self.start.select(self.rows)

    def memory_after(self, tokens: int) -> Contents:
        """The memory after the first tokens of the pass, computed anew."""
        before = self.memory_before()
        after = dict(before.states)
        for name, writes in self.writes.items():
            after[name] = writes.first(tokens, self.rows).onto(before.states.get(name))
        valid = self.valid if self.valid is None or self.rows is None else self.valid[self.rows.to(self.valid.device)]
        return Contents(after, advance(before.tokens, valid, tokens), before.open_segment)


def cache_in(named: Mapping[str, Any]) -> Any:
    """The KV cache among the keywords of a call, or the entries of an output; None if there is none.

    Of two, where a model has room for an encoder's beside it, that of a text's own keys and values.
    """
    cache = next((named[name] for name in CACHE_NAMES if named.get(name) is not None), None)
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


class MemoryCacheLayer(DummyLayer):
    """An extra layer of a KV cache that holds the memory instead of keys and values.

    It is appended after the layers of the model, and follows the cache's own operations: reorder, repeat, select, crop, reset
    and copy. It belongs to one adapter and, if the pass ran in a `with model.memory(...)` block, to that block.
    """

    def __init__(self, owner: Any, adapter: str) -> None:
        super().__init__()
        # Weak, because a copy of the cache must not copy the model.
        self.owner = weakref.ref(owner)
        self.adapter = adapter
        self.block: weakref.ref[Any] | None = None
        self.contents: Contents | None = None
        self.steps: list[_Step] = []

    @classmethod
    def find(cls, cache: Any) -> MemoryCacheLayer | None:
        """The memory that a cache carries, if any."""
        layers = getattr(cache, "layers", ())  # of which it is one of the last
        return next((layer for layer in reversed(layers) if isinstance(layer, cls)), None)

    def record(self, memory: MemoryPass, outcome: Contents) -> None:
        """Take over the memory after a pass and remember how to undo it."""
        self.contents = outcome
        self.block = None if memory.block is None else weakref.ref(memory.block)
        start = memory.start
        if not start.states:
            start = replace(start, states={name: torch.zeros_like(state) for name, state in outcome.states.items()})
        step = _Step(memory.tokens, start, memory.token_writes, memory.valid, memory.write)
        if torch.compiler.is_compiling():  # a history that grows would be another graph at every step: keep the last pass
            self.steps = [step]
            return
        if self.steps and not step.changed and not self.steps[-1].changed:
            self.steps[-1].tokens += memory.tokens
        else:
            self.steps.append(step)
        self._forget_old_steps()

    def reset(self) -> None:
        """Empty the memory with the cache."""
        self.contents, self.steps, self.block = None, [], None

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, exactly, from here and from the block that wrote them.

        Args:
            tokens_to_remove: their number, negative, as transformers has it.

        Raises:
            RuntimeError: more written tokens than the window holds, or part of a pass that wrote segments.
        """
        remaining = abs(tokens_to_remove)
        steps, contents = list(self.steps), self.contents
        while remaining and contents is not None:
            if not steps:
                raise RuntimeError(
                    f"cannot take back {abs(tokens_to_remove)} tokens from a memory: it keeps what the last {WINDOW} written "
                    "tokens need. Start again from a memory saved before them"
                )
            step = steps.pop()
            if step.tokens <= remaining:
                remaining -= step.tokens
                contents = step.memory_before()
                continue
            if step.changed and not step.writes:
                raise RuntimeError(
                    f"cannot take back {remaining} of the {step.tokens} tokens of a pass that wrote segments: a segment's "
                    "write is one. Take back the whole pass"
                )
            kept = step.tokens - remaining
            contents = step.memory_after(kept) if step.changed else contents
            shorter = {name: writes.first(kept, None) for name, writes in step.writes.items()}
            valid = None if step.valid is None else step.valid[:, :kept]
            steps.append(_Step(kept, step.start, shorter, valid, step.changed, step.rows))
            remaining = 0
        block = None if self.block is None else self.block()
        if block is not None and block.is_open and block.state.contents is self.contents:
            block.state.contents = contents
        self.steps, self.contents = steps, contents

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let every row continue another row's memory, as beam search does with the keys and values."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.contents is not None:
            self._select(torch.arange(self.contents.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows, given by index or by a boolean mask."""
        self._select(indices.nonzero().squeeze(1) if indices.dtype == torch.bool else indices)

    def _select(self, rows: Tensor) -> None:
        if self.contents is not None:
            self.contents = self.contents.select(rows)
        for step in self.steps:
            step.select(rows)

    def _forget_old_steps(self) -> None:
        written = 0
        for position in range(len(self.steps) - 1, -1, -1):
            if written >= WINDOW:
                del self.steps[: position + 1]
                return
            written += self.steps[position].tokens * self.steps[position].changed

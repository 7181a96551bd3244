"""MemoryPass: one forward pass's view of the memory, handed down to every attention layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

# States by the name of the attention module they belong to, each [batch, num_states, r, r]. A missing one is zero.
States = Mapping[str, Tensor]


@dataclass(frozen=True)
class TokenWrites:
    """What one layer wrote, token by token: the rule's k, v, keep, erase and write, each [batch, num_states, tokens, r]."""

    k: Tensor
    v: Tensor
    keep: Tensor
    erase: Tensor
    write: Tensor

    def first(self, tokens: int, rows: Tensor | None) -> TokenWrites:
        """The writes of the first tokens only, for the given batch rows."""
        parts = (self.k, self.v, self.keep, self.erase, self.write)
        return TokenWrites(*(part[:, :, :tokens] if rows is None else part[rows, :, :tokens] for part in parts))


@dataclass(frozen=True)
class Segments:
    """The segments of a pass, numbered densely in the order of their ids.

    Args:
        index: `[batch, tokens]`, the segment of each token; `count` for tokens that are not written.
        count: number of different segments in the whole batch.
        present: `[batch, count]`, True where a row has the segment.
    """

    index: Tensor
    count: int
    present: Tensor

    @classmethod
    def of(cls, ids: Tensor, valid: Tensor | None) -> Segments:
        """Number the ids `[batch, tokens]` of a pass; tokens with a negative id and padding are not written."""
        written = ids >= 0 if valid is None else (ids >= 0) & valid
        values, dense = torch.where(written, ids, -1).unique(return_inverse=True)
        count = int((values >= 0).sum())
        # unique() sorts, so "not written" comes first wherever it occurs: shift it to the end.
        index = torch.where(written, dense - (len(values) - count), count)
        present = torch.zeros(ids.shape[0], count + 1, dtype=torch.bool, device=ids.device).scatter(1, index, True)
        return cls(index, count, present[:, :count])

    def mean(self, hidden: Tensor) -> Tensor:
        """The mean over each segment: `[batch, tokens, width]` to `[batch, count, width]`, zero for absent segments."""
        index = self.index.to(hidden.device)
        sums = hidden.new_zeros(hidden.shape[0], self.count + 1, hidden.shape[2])
        sums = sums.scatter_add(1, rearrange(index, "b t -> b t 1").expand_as(hidden), hidden)
        sizes = torch.zeros_like(sums[:, :, 0]).scatter_add(1, index, torch.ones_like(hidden[:, :, 0]))
        return (sums / rearrange(sizes.clamp(min=1), "b s -> b s 1"))[:, : self.count]


@dataclass
class MemoryPass:
    """The memory in one forward pass: where it starts, what counts, and, once the layers ran, where it ended.

    `start` is never changed, so a layer that is computed again (activation checkpointing) computes the same again.

    Args:
        start: the states before the pass.
        valid: `[batch, tokens]`, False for padding; None if every token is real.
        write: whether tokens write, or the memory is only read.
        segments: what is written where an adapter writes segments (SSW).
        batch, tokens: size of the pass.
        linked: whether gradients pass from this pass's memory to another pass's.
        block: the open `with model.memory(...)` block, if any.
        cache: the `past_key_values` of the call, if any.
        end: the states after the pass, filled in by the layers.
        token_writes: what was written, filled in by the layers that write tokens.
        write_gates: the mean write gate β of each layer that wrote, a scalar with its gradient.
    """

    start: States
    valid: Tensor | None
    write: bool
    segments: Segments | None
    batch: int
    tokens: int
    linked: bool = False
    block: Any = None
    cache: Any = None
    end: dict[str, Tensor] = field(default_factory=dict)
    token_writes: dict[str, TokenWrites] = field(default_factory=dict)
    write_gates: dict[str, Tensor] = field(default_factory=dict)

"""Snapshot: all that a memory holds, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# What else a memory holds, under names that no module has.
TOKENS, OPEN_IDS, OPEN_SIZES, OPEN_SUMS = "@tokens", "@open.ids", "@open.sizes", "@open.sums:"
# Where counts of tokens stop: more than anybody writes, and so far from the end of int64 that nothing that is added overflows.
MOST_TOKENS = 2**62


@dataclass(frozen=True)
class OpenSegment:
    """The segment that each row has begun and not written yet, for adapters that write segments (SSW).

    Args:
        ids: `[batch]`, the segment's id; -1 for rows that have none open.
        sizes: `[batch]`, how many of its tokens have been seen.
        sums: the sum of their hidden states by attention module, float32 `[batch, width]`.
    """

    ids: Tensor
    sizes: Tensor
    sums: Mapping[str, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> OpenSegment:
        """The same change made to every tensor."""
        return OpenSegment(change(self.ids), change(self.sizes), {name: change(sums) for name, sums in self.sums.items()})


@dataclass(frozen=True)
class Snapshot:
    """What a memory holds. The first dimension of every tensor is the batch row; no tensor is ever changed in place.

    Args:
        states: the states by attention module, float32 `[batch, num_states, r, r]`. A missing one is zero.
        tokens: int64 `[batch]`, how many tokens have been written.
        open_segment: what has been read of a segment that is not complete; None if there is none.
    """

    states: Mapping[str, Tensor]
    tokens: Tensor
    open_segment: OpenSegment | None = None

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> Snapshot:
        """Nothing, for a batch of rows."""
        return cls({}, torch.zeros(batch, dtype=torch.int64, device=device))

    @property
    def rows(self) -> int:
        """Number of rows, each a memory of its own."""
        return self.tokens.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Snapshot:
        """The same change made to every tensor."""
        states = {name: change(state) for name, state in self.states.items()}
        return Snapshot(states, change(self.tokens), self.open_segment and self.open_segment.map(change))

    def select(self, rows: Tensor | None) -> Snapshot:
        """Some rows, given by index, in that order; all of them for None."""
        return self if rows is None else self.map(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    @classmethod
    def stack(cls, parts: Sequence[Snapshot]) -> Snapshot:
        """The rows of several memories, one after the other."""
        if any(part.open_segment for part in parts):
            parts = [part.with_open_segment(like=next(p.open_segment for p in parts if p.open_segment)) for part in parts]
        flat = [part.to_flat() for part in parts]
        return cls.from_flat({name: torch.cat([tensors[name] for tensors in flat]) for name in flat[0]})

    def with_open_segment(self, like: OpenSegment) -> Snapshot:
        """The same; where no segment is open, "none" for every row."""
        if self.open_segment is not None:
            return self
        sums = {name: sums.new_zeros(self.rows, sums.shape[1]) for name, sums in like.sums.items()}
        ids = torch.full_like(self.tokens, -1)
        return replace(self, open_segment=OpenSegment(ids, torch.zeros_like(ids), sums))

    def to_flat(self) -> dict[str, Tensor]:
        """All tensors under one name each, as a file holds them: the states under their modules' names."""
        flat = {**self.states, TOKENS: self.tokens}
        if self.open_segment is not None:
            flat |= {OPEN_IDS: self.open_segment.ids, OPEN_SIZES: self.open_segment.sizes}
            flat |= {OPEN_SUMS + name: sums for name, sums in self.open_segment.sums.items()}
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Tensor]) -> Snapshot:
        """The inverse of `to_flat`.

        Raises:
            ValueError: missing or unknown names.
        """
        sums = {name.removeprefix(OPEN_SUMS): tensor for name, tensor in flat.items() if name.startswith(OPEN_SUMS)}
        counts = {TOKENS, OPEN_IDS, OPEN_SIZES} if sums else {TOKENS}
        states = {name: tensor for name, tensor in flat.items() if not name.startswith("@")}
        given = {name for name in flat if name.startswith("@") and not name.startswith(OPEN_SUMS)}
        if given != counts:
            raise ValueError(f"it has the tensors {sorted(given)} beside the states, where {sorted(counts)} belong")
        segment = OpenSegment(flat[OPEN_IDS], flat[OPEN_SIZES], sums) if sums else None
        return cls(states, flat[TOKENS], segment)


def counted(counts: Tensor, more: Tensor | int) -> Tensor:
    """Counts of tokens after some more of them: a file may say any number up to the last, and what goes on from it is saved."""
    return (counts + more).clamp(max=MOST_TOKENS)

"""Segments: the messages or sentences of a pass. Each segment is a single write (SSW)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from deltamem.memory.snapshot import MOST_TOKENS, OpenSegment


@dataclass(frozen=True)
class Segments:
    """The segments of a pass, numbered consecutively in the order of their ids. The number `count` means "no segment".

    Args:
        index: `[batch, tokens]`, the segment of each token; `count` for tokens that are not written.
        count: number of different segments in the whole batch.
        present: `[batch, count]`, True if the row writes the segment in this pass.
        sizes: `[batch, count + 1]`, tokens in each segment, including those of earlier passes.
        begun: the segments that earlier passes left open; None if there are none.
        continued: `[batch]`, the segment to which `begun` belongs.
        last: `[batch]`, the segment that stays open after the pass; None if all are closed.
        last_ids: `[batch]`, the ids of these segments, -1 for none.
    """

    index: Tensor
    count: int
    present: Tensor
    sizes: Tensor
    begun: OpenSegment | None
    continued: Tensor | None
    last: Tensor | None
    last_ids: Tensor | None

    @classmethod
    def from_ids(cls, ids: Tensor, valid: Tensor | None, begun: OpenSegment | None = None, keep_open: bool = False) -> Segments:
        """Number the segments of a pass.

        Args:
            ids: `[batch, tokens]`; tokens with a negative id are not written.
            valid: `[batch, tokens]`, False for padding; None if every token is real.
            begun: the segments that earlier passes left open. A row that has the same id in this pass continues its segment;
                otherwise its open segment is complete, and is written before the others.
            keep_open: leave each row's last segment open.
        """
        ids = torch.where(ids >= 0 if valid is None else (ids >= 0) & valid, ids, -1)
        begun_ids = ids[:, :0] if begun is None else rearrange(begun.ids.to(ids.device), "b -> b 1")
        all_ids = torch.cat([begun_ids, ids], dim=1)  # [batch, 1 + tokens], or [batch, tokens] if no segment was open
        written = all_ids >= 0
        order = torch.where(written, all_ids.unique(return_inverse=True)[1] + 1, -1)
        if begun is not None:
            complete = (begun_ids >= 0) & ~(ids == begun_ids).any(1, keepdim=True)
            order[:, :1] = torch.where(complete, 0, order[:, :1])
        values, dense = order.unique(return_inverse=True)
        count = int((values >= 0).sum())
        # unique() sorts, so "no segment" comes first if it occurs: move it to the end.
        index = torch.where(written, dense - (len(values) - count), count)
        present = torch.zeros(ids.shape[0], count + 1, dtype=torch.bool, device=ids.device).scatter(1, index, True)
        last = last_ids = None
        if keep_open:
            position = (written * torch.arange(1, written.shape[1] + 1, device=ids.device)).argmax(1, keepdim=True)
            last, last_ids = index.gather(1, position).squeeze(1), all_ids.gather(1, position).squeeze(1)
            present = present.scatter(1, rearrange(last, "b -> b 1"), False)
        continued = None if begun is None else index[:, 0]
        begun_sizes = begun_ids if begun is None else rearrange(begun.sizes.to(ids.device), "b -> b 1")
        weights = torch.cat([begun_sizes, torch.ones_like(ids)], dim=1)
        sizes = torch.zeros(ids.shape[0], count + 1, dtype=torch.int64, device=ids.device).scatter_add(1, index, weights)
        index = index[:, begun_ids.shape[1] :]
        return cls(index, count, present[:, :count], sizes, begun, continued, last, last_ids)

    @property
    def tokens(self) -> Tensor:
        """How many tokens of each row belong to a segment: `[batch]`."""
        return (self.index < self.count).sum(1)

    def sums(self, hidden: Tensor, module: str) -> Tensor:
        """The sum of the hidden states of each segment, including those from earlier passes.

        Args:
            hidden: the hidden states that enter an attention module, `[batch, tokens, width]`.
            module: the name of the module.

        Returns:
            float32 `[batch, count + 1, width]`; the last entry collects the tokens outside any segment.
        """
        shape = (hidden.shape[0], self.count + 1, hidden.shape[2])
        index = rearrange(self.index.to(hidden.device), "b t -> b t 1").expand_as(hidden)
        sums = torch.zeros(shape, dtype=torch.float32, device=hidden.device).scatter_add(1, index, hidden.float())
        if self.begun is None or self.continued is None:
            return sums
        earlier = rearrange(self.begun.sums[module].to(hidden.device), "b w -> b 1 w")
        return sums.scatter_add(1, rearrange(self.continued.to(hidden.device), "b -> b 1 1").expand_as(earlier), earlier)

    def means(self, sums: Tensor) -> Tensor:
        """The mean of each segment from `sums`: `[batch, count, width]`, zero for absent segments."""
        sizes = rearrange(self.sizes.to(sums.device), "b s -> b s 1")
        return (sums / sizes.clamp(min=1))[:, : self.count]

    def open_sums(self, sums: Tensor) -> Tensor | None:
        """The sums of the segments that stay open, `[batch, width]`, zero for a row without one; None if all are closed."""
        if self.last is None:
            return None
        last = self.last.to(sums.device)
        picked = sums.gather(1, rearrange(last, "b -> b 1 1").expand(-1, 1, sums.shape[2])).squeeze(1)
        return torch.where(rearrange(last < self.count, "b -> b 1"), picked, 0)

    def left_open(self, sums: Mapping[str, Tensor]) -> OpenSegment | None:
        """The segments that stay open after the pass, with each layer's `open_sums`."""
        if self.last is None or self.last_ids is None or not sums:
            return None
        sizes = self.sizes.gather(1, rearrange(self.last, "b -> b 1")).squeeze(1)
        return OpenSegment(self.last_ids, torch.where(self.last < self.count, sizes, 0).clamp(max=MOST_TOKENS), sums)


def whole_numbers(segment_ids: Tensor) -> Tensor:
    """Convert a caller's segment ids, integers `[batch, tokens]` of any width, to int64.

    Raises:
        ValueError: the ids have another form.
    """
    dtype = segment_ids.dtype
    if segment_ids.ndim != 2 or dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"segment_ids must be whole numbers [batch, tokens], got {dtype} {tuple(segment_ids.shape)}")
    return segment_ids.long()

"""Snapshot: all that a memory holds, at one moment.

Shapes: L attention layers, B batch rows, W width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltamem.rule.kind import STATE

# How tensors are named in a file: the delta rule's only part by its layer, whatever else by names that no module has.
PART, TOKENS, OPEN_IDS, OPEN_SIZES, OPEN_SUMS = "@part.", "@tokens", "@open.ids", "@open.sizes", "@open.sums:"
# Where counts of tokens stop: more than anybody writes, and so far from the end of int64 that nothing that is added overflows.
MOST_TOKENS = 2**62


@dataclass(frozen=True)
class OpenSegment:
    """The segment that each row has begun and not written yet, for adapters that write segments (SSW).

    Args:
        ids: [B], the segment's id; -1 for rows that have none open.
        sizes: [B], how many of its tokens have been seen.
        sums: the sum of their hidden states by layer, float32 [B, W].
    """

    ids: Tensor
    sizes: Tensor
    sums: Mapping[str, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> OpenSegment:
        """The same change made to every tensor."""
        return OpenSegment(change(self.ids), change(self.sizes), {name: change(sums) for name, sums in self.sums.items()})


@dataclass(frozen=True)
class Snapshot:
    """What a memory holds. No tensor is ever changed in place.

    All layers' states are in one tensor for each part, so that a decoded token, which reads and writes all of them, costs few
    calls. Where layers are on several devices, they are on the first one's.

    Args:
        layers: names of the attention layers; none for a memory that is empty.
        parts: the parts of their states by name, float32 [L, B, ...]; the delta rule has one, "state", [L, B, states, r, r].
        tokens: int64 [B], how many tokens have been written.
        open_segment: what has been read of a segment that is not complete; None if there is none.
    """

    layers: tuple[str, ...]
    parts: Mapping[str, Tensor]
    tokens: Tensor
    open_segment: OpenSegment | None = None

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> Snapshot:
        """Nothing, for a batch of rows."""
        return cls((), {}, torch.zeros(batch, dtype=torch.int64, device=device))

    @classmethod
    def from_layers(
        cls, states: Mapping[str, Mapping[str, Tensor]], tokens: Tensor, open_segment: OpenSegment | None = None
    ) -> Snapshot:
        """From each layer's state, its parts `[B, ...]` by name."""
        first = next(iter(states.values()), {})
        stacked = {
            part: torch.stack([state[part].to(tensor.device) for state in states.values()]) for part, tensor in first.items()
        }
        return cls(tuple(states), stacked, tokens, open_segment)

    @property
    def rows(self) -> int:
        """Number of rows; each is an independent memory."""
        return self.tokens.shape[0]

    def state(self, layer: str) -> dict[str, Tensor] | None:
        """The parts of a layer's state, [B, ...]; None for a layer that it has nothing of."""
        if layer not in self.layers:
            return None
        number = self.layers.index(layer)
        return {part: tensor[number] for part, tensor in self.parts.items()}

    def ordered(self, layers: tuple[str, ...]) -> Snapshot:
        """The same with the layers in this order; it has all of them."""
        if self.layers == layers:
            return self if self.layers is layers else replace(self, layers=layers)
        numbers = [self.layers.index(layer) for layer in layers]
        return replace(self, layers=layers, parts={part: tensor[numbers] for part, tensor in self.parts.items()})

    def map(self, change: Callable[[Tensor], Tensor]) -> Snapshot:
        """The same change made to every tensor."""
        return self.map_rows(lambda tensor, _: change(tensor))

    def map_rows(self, change: Callable[[Tensor, int], Tensor]) -> Snapshot:
        """The same change made to the rows of every tensor, along the dimension that is given with it."""
        segment = self.open_segment and self.open_segment.map(lambda tensor: change(tensor, 0))
        return Snapshot(
            self.layers, {part: change(tensor, 1) for part, tensor in self.parts.items()}, change(self.tokens, 0), segment
        )

    def select(self, rows: Tensor | None) -> Snapshot:
        """Some rows, given by index [rows], in that order; all of them for None."""
        return self if rows is None else self.map_rows(lambda tensor, dim: tensor.index_select(dim, rows.to(tensor.device)))

    def repeat(self, times: int) -> Snapshot:
        """Every row so many times, one after the other."""
        return self.map_rows(lambda tensor, dim: tensor.repeat_interleave(times, dim=dim))

    @classmethod
    def stack(cls, snapshots: Sequence[Snapshot]) -> Snapshot:
        """The rows of several memories, one after the other."""
        if any(snapshot.open_segment for snapshot in snapshots):
            like = next(snapshot.open_segment for snapshot in snapshots if snapshot.open_segment)
            snapshots = [snapshot.with_open_segment(like) for snapshot in snapshots]
        flat = [snapshot.to_flat() for snapshot in snapshots]
        return cls.from_flat({name: torch.cat([tensors[name] for tensors in flat]) for name in flat[0]})

    def with_open_segment(self, like: OpenSegment) -> Snapshot:
        """The same; where no segment is open, "none" for every row."""
        if self.open_segment is not None:
            return self
        sums = {name: sums.new_zeros(self.rows, sums.shape[1]) for name, sums in like.sums.items()}
        ids = torch.full_like(self.tokens, -1)
        return replace(self, open_segment=OpenSegment(ids, torch.zeros_like(ids), sums))

    def states(self) -> dict[str, Tensor]:
        """The layers' states [B, ...] as a file names them: the part "state" by its layer alone, others with the part."""
        return {
            state_name(part, layer): tensor[number]
            for part, tensor in self.parts.items()
            for number, layer in enumerate(self.layers)
        }

    def to_flat(self) -> dict[str, Tensor]:
        """All tensors under one name each, [B, ...], as a file holds them."""
        flat = {**self.states(), TOKENS: self.tokens}
        if self.open_segment is not None:
            flat |= {OPEN_IDS: self.open_segment.ids, OPEN_SIZES: self.open_segment.sizes}
            flat |= {OPEN_SUMS + name: sums for name, sums in self.open_segment.sums.items()}
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Tensor]) -> Snapshot:
        """The inverse of `to_flat`.

        Raises:
            ValueError: missing or unknown names; states that are not float32 of one shape for all layers.
        """
        sums = {name.removeprefix(OPEN_SUMS): tensor for name, tensor in flat.items() if name.startswith(OPEN_SUMS)}
        counts = {TOKENS, OPEN_IDS, OPEN_SIZES} if sums else {TOKENS}
        states = {name: tensor for name, tensor in flat.items() if not name.startswith("@") or name.startswith(PART)}
        given = {*flat} - {*states} - {name for name in flat if name.startswith(OPEN_SUMS)}
        if given != counts:
            raise ValueError(f"it has the tensors {sorted(given)} beside the states, where {sorted(counts)} belong")
        segment = OpenSegment(flat[OPEN_IDS], flat[OPEN_SIZES], sums) if sums else None
        _check_states(states)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in states.items():
            part, _, layer = name.removeprefix(PART).partition(":") if name.startswith(PART) else (STATE, "", name)
            parts.setdefault(part, {})[layer] = tensor
        layers = tuple(next(iter(parts.values())))
        if any({*tensors} != {*layers} for tensors in parts.values()):
            raise ValueError("its layers have different parts of a state")
        stacked = {part: torch.stack([tensors[layer] for layer in layers]) for part, tensors in parts.items()}
        return cls(layers, stacked, flat[TOKENS], segment)


def _check_states(states: Mapping[str, Tensor]) -> None:
    """Make sure that states can be one tensor for each part."""
    if not states:
        raise ValueError("a memory needs at least one tensor, got none")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in states.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the memory of {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"the memory of {name} must be float32, got {tensor.dtype}")
        if tensor.ndim < 2 or 0 in tensor.shape:
            raise ValueError(f"the memory of {name} must be [batch, ...] and not empty, got {tuple(tensor.shape)}")
        part = name.partition(":")[0] if name.startswith(PART) else STATE
        if shapes.setdefault(part, tuple(tensor.shape)) != tuple(tensor.shape):
            raise ValueError(
                f"all layers of a memory must have one shape and one batch size, got {list(shapes[part])} and "
                f"{list(tensor.shape)}"
            )
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError("all parts of a memory must have one batch size")


def state_name(part: str, layer: str) -> str:
    """What a part of a layer's state is called in a file."""
    return layer if part == STATE else f"{PART}{part}:{layer}"


def counted(counts: Tensor, more: Tensor | int) -> Tensor:
    """Counts of tokens after some more of them: a file may say any number up to the last, and what goes on from it is saved."""
    return (counts + more).clamp(max=MOST_TOKENS)

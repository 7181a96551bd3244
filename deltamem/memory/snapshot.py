"""Snapshot: the contents of a memory at one moment.

Shapes: L attention layers, B batch rows, W width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltamem.rule.kind import STATE

# The names of tensors in a file: the layer's name for the part "state"; all other names begin with "@", as no module's does.
PART, TOKENS, OPEN_IDS, OPEN_SIZES, OPEN_SUMS = "@part.", "@tokens", "@open.ids", "@open.sizes", "@open.sums:"
# The largest token count: more than is ever written, and so far below the maximum of int64 that no addition overflows.
MOST_TOKENS = 2**62


@dataclass(frozen=True)
class OpenSegment:
    """The segment that each row has begun but not yet written, for adapters that write segments (SSW).

    Args:
        ids: [B], the id of the segment; -1 for rows without an open one.
        sizes: [B], the number of its tokens so far.
        sums: the sum of their hidden states by layer, float32 [B, W].
    """

    ids: Tensor
    sizes: Tensor
    sums: Mapping[str, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> OpenSegment:
        """Apply a function to every tensor."""
        return OpenSegment(change(self.ids), change(self.sizes), {name: change(sums) for name, sums in self.sums.items()})


@dataclass(frozen=True)
class Snapshot:
    """The contents of a memory. No tensor is ever changed in place.

    The states of all layers are in one tensor per part, so that a decode step, which reads and writes all of them, needs few
    calls. If the layers are on several devices, this tensor is on the device of the first.

    Args:
        layers: names of the attention layers; none for an empty memory.
        parts: the parts of their states by name, float32 [L, B, ...]; the delta rule has one, "state", [L, B, states, r, r].
        tokens: int64 [B], the number of tokens written.
        open_segment: the segments that are not complete yet; None if there are none.
    """

    layers: tuple[str, ...]
    parts: Mapping[str, Tensor]
    tokens: Tensor
    open_segment: OpenSegment | None = None

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> Snapshot:
        """An empty memory for a batch."""
        return cls((), {}, torch.zeros(batch, dtype=torch.int64, device=device))

    @classmethod
    def zeros(cls, layers: tuple[str, ...], parts: Mapping[str, tuple[int, ...]], batch: int, device: torch.device) -> Snapshot:
        """A memory before its first write, from the shapes of a state's parts."""
        zeros = {
            part: torch.zeros((len(layers), batch, *shape), dtype=torch.float32, device=device) for part, shape in parts.items()
        }
        return cls(layers, zeros, torch.zeros(batch, dtype=torch.int64, device=device))

    @classmethod
    def from_layers(
        cls, states: Mapping[str, Mapping[str, Tensor]], tokens: Tensor, open_segment: OpenSegment | None = None
    ) -> Snapshot:
        """Make a snapshot from the layers' states, each a mapping of its parts `[B, ...]` by name."""
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
        """The parts of a layer's state, [B, ...]; None for a layer that the memory does not have."""
        if layer not in self.layers:
            return None
        number = self.layers.index(layer)
        return {part: tensor[number] for part, tensor in self.parts.items()}

    def ordered(self, layers: tuple[str, ...]) -> Snapshot:
        """The same memory with its layers in this order."""
        if self.layers == layers:
            return self if self.layers is layers else replace(self, layers=layers)
        numbers = [self.layers.index(layer) for layer in layers]
        return replace(self, layers=layers, parts={part: tensor[numbers] for part, tensor in self.parts.items()})

    def map(self, change: Callable[[Tensor], Tensor]) -> Snapshot:
        """Apply a function to every tensor."""
        return self.map_rows(lambda tensor, _: change(tensor))

    def map_rows(self, change: Callable[[Tensor, int], Tensor]) -> Snapshot:
        """Apply a function to every tensor; it also takes the dimension of the tensor's rows."""
        segment = self.open_segment and self.open_segment.map(lambda tensor: change(tensor, 0))
        return Snapshot(
            self.layers, {part: change(tensor, 1) for part, tensor in self.parts.items()}, change(self.tokens, 0), segment
        )

    def select(self, rows: Tensor | None) -> Snapshot:
        """The rows with these indices [rows], in this order; all rows if None."""
        return self if rows is None else self.map_rows(lambda tensor, dim: tensor.index_select(dim, rows.to(tensor.device)))

    def repeat(self, times: int) -> Snapshot:
        """Repeat every row; the copies of a row are adjacent."""
        return self.map_rows(lambda tensor, dim: tensor.repeat_interleave(times, dim=dim))

    @classmethod
    def stack(cls, snapshots: Sequence[Snapshot]) -> Snapshot:
        """Concatenate the rows of several memories."""
        if any(snapshot.open_segment for snapshot in snapshots):
            like = next(snapshot.open_segment for snapshot in snapshots if snapshot.open_segment)
            snapshots = [snapshot.with_open_segment(like) for snapshot in snapshots]
        flat = [snapshot.to_flat() for snapshot in snapshots]
        return cls.from_flat({name: torch.cat([tensors[name] for tensors in flat]) for name in flat[0]})

    def with_open_segment(self, like: OpenSegment) -> Snapshot:
        """The same memory with an open segment; if it has none, an empty one for every row."""
        if self.open_segment is not None:
            return self
        sums = {name: sums.new_zeros(self.rows, sums.shape[1]) for name, sums in like.sums.items()}
        ids = torch.full_like(self.tokens, -1)
        return replace(self, open_segment=OpenSegment(ids, torch.zeros_like(ids), sums))

    def states(self) -> dict[str, Tensor]:
        """The layers' states [B, ...] by their names in a file: the layer's for the part "state", else with the part's name."""
        return {
            state_name(part, layer): tensor[number]
            for part, tensor in self.parts.items()
            for number, layer in enumerate(self.layers)
        }

    def to_flat(self) -> dict[str, Tensor]:
        """All tensors, [B, ...], by their names in a file."""
        flat = {**self.states(), TOKENS: self.tokens}
        if self.open_segment is not None:
            flat |= {OPEN_IDS: self.open_segment.ids, OPEN_SIZES: self.open_segment.sizes}
            flat |= {OPEN_SUMS + name: sums for name, sums in self.open_segment.sums.items()}
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Tensor]) -> Snapshot:
        """The inverse of `to_flat`.

        Raises:
            ValueError: names are missing or unknown, or the states are not float32 or differ in shape between layers.
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
    """Check that the states of all layers can be stacked into one tensor per part."""
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
    """The name of a part of a layer's state in a file."""
    return layer if part == STATE else f"{PART}{part}:{layer}"


def state_shapes(layers: Iterable[str], parts: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the states of so many memories, by their names in a file.

    Args:
        layers: names of the attention layers.
        parts: the shapes of the parts of a layer's state, without rows; see `MemoryKind`.
        rows: the number of memories.
    """
    return {state_name(part, layer): (rows, *shape) for part, shape in parts.items() for layer in layers}


def counted(counts: Tensor, more: Tensor | int) -> Tensor:
    """Add to token counts, without exceeding the largest one: a file may hold that already."""
    return (counts + more).clamp(max=MOST_TOKENS)

"""Batch: the tokens of several requests, one after another, and what they do with the memories in their slots.

Shapes: S slots, R requests of a step, T tokens of a step, B requests of a group, C tokens of each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.rule import MemoryKind


class Use(IntEnum):
    """What the tokens of a request do with its memory."""

    NONE = 0  # its memory is empty and stays so: nothing is read, because the corrections would be zero
    READ = 1
    WRITE = 2  # every token reads, and then writes


class SlotUse(NamedTuple):
    """What a request does with the memory in its slot.

    Args:
        use: what its tokens do.
        known: how many of them, from the first, only read where the others write.
    """

    use: Use
    known: int = 0


_NOTHING = SlotUse(Use.NONE)


class Group(NamedTuple):
    """Requests of a step with equally many tokens and the same use, which pass through a memory together.

    Args:
        tokens: the places of their tokens, request by request: a slice if they are adjacent, else [B * C].
        slots: the slots of their states, [B].
        length: C.
        writes: whether they write.
    """

    tokens: slice | Tensor
    slots: Tensor
    length: int
    writes: bool


def grouped(
    bounds: Sequence[int], passed: Sequence[int], slots: Sequence[int], uses: Mapping[int, SlotUse], device: torch.device
) -> list[Group]:
    """Sort the requests of a step into groups, those that read first; requests without a use are left out.

    A request is in two groups if some of its tokens in this step only read, and those after them write.

    Args:
        bounds: where the tokens of each request begin, and where those of the last one end, [R + 1].
        passed: how many tokens of each request were passed through the model before this step, [R].
        slots: the slot of each request, [R].
        uses: the use of the request in each slot; a slot that is missing has none.
        device: the device of the states.
    """
    found: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for start, end, before, slot in zip(bounds[:-1], bounds[1:], passed, slots, strict=True):
        use, known = uses.get(slot, _NOTHING)
        if use is Use.NONE:
            continue
        written = min(start + max(known - before, 0), end) if use is Use.WRITE else end
        for first, last, writes in ((start, written, False), (written, end, True)):
            if last > first:
                found.setdefault((writes, last - first), []).append((first, slot))
    return [
        Group(
            _places([start for start, _ in requests], length, device),
            torch.tensor([slot for _, slot in requests], dtype=torch.int64, device=device),
            length,
            writes,
        )
        for (writes, length), requests in sorted(found.items())
    ]


def _places(starts: Sequence[int], length: int, device: torch.device) -> slice | Tensor:
    first, last = starts[0], starts[-1]
    if last - first == (len(starts) - 1) * length and [*starts] == [*range(first, last + 1, length)]:
        return slice(first, last + length)
    places = torch.tensor(starts, dtype=torch.int64, device=device)[:, None] + torch.arange(length, device=device)  # [B, C]
    return places.flatten()


class Entrance:
    """How hidden states enter a memory.

    Args:
        kind: the update rule.
        weight: the map from the hidden states to the rows that read and write, float32 [read_rows + write_rows, width].
        bias: the bias of the gates, [bias_rows].
    """

    def __init__(self, kind: MemoryKind, weight: Tensor, bias: Tensor) -> None:
        self.kind, self.weight, self.bias = kind, weight, bias
        self.reading = weight[: kind.read_rows]


def read_and_write(entrance: Entrance, hidden: Tensor, states: Mapping[str, Tensor], groups: Sequence[Group]) -> Tensor:
    """Let the tokens of a step read the memories of one layer and, where they write, change them in place.

    Args:
        entrance: how the hidden states enter the memory.
        hidden: the hidden states that enter the layer's projections, [T, width].
        states: the states by part, float32 [S, ...].
        groups: what the tokens do.

    Returns:
        The reads, float32 [T, read_width]; zero for tokens in no group.
    """
    if len(groups) == 1 and groups[0].tokens == slice(0, len(hidden)):
        return _passed(entrance, hidden, states, groups[0])
    reads = torch.zeros((len(hidden), entrance.kind.read_width), dtype=torch.float32, device=hidden.device)
    for group in groups:
        reads[group.tokens] = _passed(entrance, hidden[group.tokens], states, group)
    return reads


def _passed(entrance: Entrance, hidden: Tensor, states: Mapping[str, Tensor], group: Group) -> Tensor:
    """The reads of one group, [B * C, read_width], from its hidden states [B * C, width]."""
    kind, weight = entrance.kind, entrance.weight if group.writes else entrance.reading
    state = {part: tensor[group.slots] for part, tensor in states.items()}  # [B, ...]
    projected = F.linear(hidden.to(weight.dtype), weight).view(-1, group.length, len(weight))  # [B, C, rows]
    if not group.writes:
        return kind.read(projected, state, None).flatten(0, 1)
    outcome = kind.read_and_write(projected, entrance.bias, state, None)
    for part, tensor in states.items():
        tensor[group.slots] = outcome.state[part]
    return outcome.reads.flatten(0, 1)

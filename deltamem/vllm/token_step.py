"""TokenStep: one token each of a few requests through a layer's memory on a CPU, in one compiled call.

Shapes: S slots, B requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deltamem.rule import DeltaKind, MemoryKind
from deltamem.rule.backends import importable
from deltamem.vllm.adapter import LayerWeights
from deltamem.vllm.batch import Group

# With more requests, matrix products in several threads are faster.
MOST_REQUESTS = 32


class TokenStep:
    """What `read_and_write` and the maps of the corrections do, for one token of each request.

    Args:
        kind: the update rule.
        weights: the layer's weights; the corrections are those of this rank's features, scaled.
    """

    def __init__(self, kind: DeltaKind, weights: LayerWeights) -> None:
        from deltamem.rule.cpu.decode import Table, pass_slots

        maps = [*weights.corrections.values()]
        entrances = {writes: weights.entrance[: None if writes else kind.read_rows].contiguous() for writes in (False, True)}
        self._run = pass_slots
        self._weights = weights, entrances  # the tables have their addresses
        self._tables = {
            writes: Table([entrance], [weights.bias], [maps], kind, writes) for writes, entrance in entrances.items()
        }
        self._room = {writes: (len(entrance), kind.read_width) for writes, entrance in entrances.items()}
        self._features = {role: len(weight) for role, weight in weights.corrections.items()}

    @classmethod
    def of(cls, kind: MemoryKind, weights: LayerWeights, device: torch.device) -> TokenStep | None:
        """The step of a layer; None if nothing is compiled for memories of this kind on this device."""
        return cls(kind, weights) if isinstance(kind, DeltaKind) and device.type == "cpu" and importable("compiled") else None

    def takes(self, tokens: int, groups: Sequence[Group]) -> bool:
        """Whether all tokens of vLLM's step are one each of a few requests with the same use."""
        return tokens <= MOST_REQUESTS and groups[0].length == 1 and groups[0].tokens == slice(0, tokens)

    def __call__(self, hidden: Tensor, states: Tensor, group: Group) -> Mapping[str, Tensor]:
        """Read the memories and, if the group writes, change them in place.

        Args:
            hidden: the hidden states that enter the layer's projections, [B, width].
            states: float32 [S, states, r, r]; each slot is contiguous.
            group: the requests.

        Returns:
            The corrections by role, float32 [B, features].
        """
        batch, hidden = len(hidden), hidden.to(torch.float32).contiguous()
        # The room for the projections and the reads, then the corrections.
        sizes = [batch * size for size in (*self._room[group.writes], *self._features.values())]
        projected, reads, *corrections = torch.empty(sum(sizes), dtype=torch.float32, device="cpu").split(sizes)
        self._run(
            self._tables[group.writes].rows[0],
            len(corrections),
            batch,
            group.slots.data_ptr(),
            states.data_ptr(),
            states.stride(0) * states.element_size(),
            projected.data_ptr(),
            reads.data_ptr(),
            hidden.data_ptr(),
            corrections[0].data_ptr(),
        )
        return {role: part.view(batch, -1) for role, part in zip(self._features, corrections, strict=True)}

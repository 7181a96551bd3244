"""AdapterParts: what one adapter has in one attention layer, at hand without the look-ups of nn.Module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from deltamem.config import DeltaMemConfig
from deltamem.rule import Gating


@dataclass(frozen=True)
class AdapterParts:
    """The modules of one adapter in one layer, and what its config makes of them.

    Args:
        name: of the adapter.
        config: of the adapter.
        gating: what the rows of `entrance` mean.
        scale: what the corrections are multiplied with.
        entrance: the map from the hidden states to the rows that `gating` describes.
        corrections: the maps from the reads to the projections' outputs, by role.
    """

    name: str
    config: DeltaMemConfig
    gating: Gating
    scale: float
    entrance: nn.Module
    corrections: dict[str, nn.Module]

"""LayerWeights: what one adapter has in one attention layer, at hand without the look-ups of nn.Module."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from deltamem.config import DeltaMemConfig
from deltamem.rule import Gating


@dataclass(frozen=True)
class LayerWeights:
    """The modules of one adapter in one layer, and what its config makes of them.

    Args:
        name: of the adapter.
        config: of the adapter.
        gating: what the rows of `entrance` mean.
        scale: what the corrections are multiplied with.
        entrance: the map from the hidden states to the rows that `gating` describes.
        gate_biases: of all adapters, by name: of the rows β | λ.
        corrections: the maps from the reads to the projections' outputs, by role.
    """

    name: str
    config: DeltaMemConfig
    gating: Gating
    scale: float
    entrance: nn.Module
    gate_biases: nn.ParameterDict
    corrections: dict[str, nn.Module]

    def weights(self) -> list[Tensor]:
        """The weights of the entrance, of the gates' bias and of the corrections."""
        return [holder[name] for holder, name in self._places]

    @cached_property
    def _places(self) -> list[tuple[dict[str, Any], str]]:
        """Where the weights are: dictionaries, and keys in them."""
        modules = (self.entrance, self.gate_biases, *self.corrections.values())
        names = ("weight", self.name, *("weight" for _ in self.corrections))
        return [(module._parameters, name) for module, name in zip(modules, names, strict=True)]

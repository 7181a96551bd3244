"""LayerWeights: the modules of one adapter in one attention layer, without the look-up costs of nn.Module."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from deltamem.adapter.offloading import loaded_weight
from deltamem.config import DeltaMemConfig
from deltamem.rule import MemoryKind


@dataclass(frozen=True)
class LayerWeights:
    """The modules of one adapter in one layer, with its config.

    Args:
        name: the name of the adapter.
        config: the configuration of the adapter.
        kind: the update rule.
        scale: factor of the corrections.
        in_proj: the map from the hidden states to the rows that read and write, [read_rows + write_rows, width].
        gate_biases: the biases of all adapters by name, [bias_rows] each.
        corrections: the maps from the reads to the projections' outputs, by role.
    """

    name: str
    config: DeltaMemConfig
    kind: MemoryKind
    scale: float
    in_proj: nn.Module
    gate_biases: nn.ParameterDict
    corrections: dict[str, nn.Module]

    @property
    def in_weight(self) -> Tensor:
        """The weight of `in_proj`, [read_rows + write_rows, width]; loaded if it was offloaded."""
        return loaded_weight(self.in_proj, "weight")

    @property
    def gate_bias(self) -> Tensor:
        """The bias of the gates, [bias_rows]; loaded if it was offloaded."""
        return loaded_weight(self.gate_biases, self.name)

    def tensors(self) -> list[Tensor]:
        """The weight of `in_proj`, the bias, and the weights of the corrections, on their current devices."""
        return [holder[name] for holder, name in self._places]

    @cached_property
    def _places(self) -> list[tuple[dict[str, Any], str]]:
        """The dictionaries that hold the weights, with the keys."""
        modules = (self.in_proj, self.gate_biases, *self.corrections.values())
        names = ("weight", self.name, *("weight" for _ in self.corrections))
        return [(module._parameters, name) for module, name in zip(modules, names, strict=True)]

"""WeightsAtHand: an adapter's weights in all layers, looked up once for all tokens that are decoded with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltamem.parts import AdapterParts
from deltamem.rule import Gating


class Correction(NamedTuple):
    """One correction of a layer.

    Args:
        weight: the map from the reads to the projection's output, `[features, reads]`.
        features: see above.
        number: of the layer's corrections, from 0.
    """

    weight: Tensor
    features: int
    number: int


class LayerWeights(NamedTuple):
    """What an adapter has in one layer, as tensors.

    Args:
        number: of the layer, from 0.
        parts: of the adapter.
        entrance: the map from the hidden state to the projections, `[rows, width]`.
        width: see above.
        bias: of the gates.
        corrections: by role.
    """

    number: int
    parts: AdapterParts
    entrance: Tensor
    width: int
    bias: Tensor
    corrections: dict[str, Correction]

    @classmethod
    def of(cls, number: int, parts: AdapterParts) -> LayerWeights:
        """Look the tensors up."""
        entrance, bias, *maps = (holder[name] for holder, name in parts.places())
        corrections = {
            role: Correction(weight, len(weight), number)
            for number, (role, weight) in enumerate(zip(parts.corrections, maps, strict=True))
        }
        return cls(number, parts, entrance, entrance.shape[1], bias, corrections)


class WeightsAtHand:
    """The weights that calls take as they are: float32, contiguous, where the hidden states are.

    Args:
        layers: what the adapter has in each layer, by its name.
        device: of the hidden states.

    Attributes:
        layers: the weights by the layers' names; empty if some are of another kind or elsewhere.
        numbers: of the layers, by their names.
    """

    def __init__(self, layers: Mapping[str, AdapterParts], device: torch.device) -> None:
        self.device = device
        self._parts = [*layers.values()]
        self._places = [*chain.from_iterable(parts.places() for parts in self._parts)]
        weights = [holder[name] for holder, name in self._places]
        at_hand = all(_is_at_hand(weight, device) for weight in weights)
        # Held, so that no other weight's memory can be at these addresses.
        self._memory = [weight.untyped_storage() for weight in weights] if at_hand else []
        self._addresses = self._look_up() if at_hand else None
        found = enumerate(layers.items()) if at_hand else ()
        self.layers = {name: LayerWeights.of(number, parts) for number, (name, parts) in found}
        self.numbers = {name: weights.number for name, weights in self.layers.items()}
        self._made: dict[Any, Any] = {}

    @property
    def gating(self) -> Gating:
        """What the rows of the entrances mean."""
        return self._parts[0].gating  # all layers have the adapter's

    @property
    def scale(self) -> float:
        """What the corrections are multiplied with."""
        return self._parts[0].scale

    def once(self, key: Any, make: Callable[[WeightsAtHand], Any]) -> Any:
        """Something made of these weights, made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]

    def are_still(self, layers: Mapping[str, AdapterParts], device: torch.device) -> bool:
        """Whether these are at hand, and the weights: no layer and no weight's memory was replaced since."""
        if self._addresses is None or device != self.device or len(layers) != len(self._parts):
            return False
        return all(map(is_, layers.values(), self._parts)) and self._look_up() == self._addresses

    def _look_up(self) -> list[int]:
        """Where the weights are in memory."""
        return [holder[name].data_ptr() for holder, name in self._places]


def _is_at_hand(weight: Tensor, device: torch.device) -> bool:
    whole = type(weight) is nn.Parameter  # no shard, for instance
    return whole and weight.device == device and weight.dtype is torch.float32 and weight.is_contiguous()

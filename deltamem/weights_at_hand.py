"""WeightsAtHand: an adapter's weights in all layers, looked up once for all tokens that are decoded with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltamem.parts import AdapterParts
from deltamem.rule import Gating

_dtype_of = attrgetter("dtype")


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
        parts: of the adapter.
        entrance: the map from the hidden state to the projections, `[rows, width]`.
        width: see above.
        bias: of the gates.
        corrections: by role.
    """

    parts: AdapterParts
    entrance: Tensor
    width: int
    bias: Tensor
    corrections: dict[str, Correction]

    @classmethod
    def of(cls, parts: AdapterParts) -> LayerWeights:
        """Look the tensors up."""
        entrance, bias, *maps = (holder[name] for holder, name in parts.places())
        corrections = {
            role: Correction(weight, len(weight), number)
            for number, (role, weight) in enumerate(zip(parts.corrections, maps, strict=True))
        }
        return cls(parts, entrance, entrance.shape[1], bias, corrections)


class WeightsAtHand:
    """The weights that calls take as they are: float32, contiguous, where the hidden states are.

    Args:
        layers: what the adapter has in each layer, by its name.
        device: of the hidden states.

    Attributes:
        layers: the weights by the layers' names; empty if some are of another kind or elsewhere.
    """

    def __init__(self, layers: Mapping[str, AdapterParts], device: torch.device) -> None:
        self.device = device
        self._parts = [*layers.values()]
        self._places = [*chain.from_iterable(parts.places() for parts in self._parts)]
        self._weights = self._look_up()
        at_hand = all(_is_at_hand(weight, device) for weight in self._weights)
        self._described = _described(self._weights) if at_hand else None
        self.layers = {name: LayerWeights.of(parts) for name, parts in layers.items()} if at_hand else {}
        self._made: dict[Any, Any] = {}

    @property
    def gating(self) -> Gating:
        """What the rows of the entrances mean."""
        return self._parts[0].gating  # all layers have the adapter's

    def once(self, key: Any, make: Callable[[WeightsAtHand], Any]) -> Any:
        """Something made of these weights, made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]

    def are_still(self, layers: Mapping[str, AdapterParts], device: torch.device) -> bool:
        """Whether these are at hand, and the weights: no layer, no weight and no weight's memory was replaced since."""
        if self._described is None or device != self.device or len(layers) != len(self._parts):
            return False
        weights = self._look_up()
        return (
            all(map(is_, layers.values(), self._parts))
            and all(map(is_, weights, self._weights))
            and _described(weights) == self._described
        )

    def _look_up(self) -> list[Tensor]:
        return [holder[name] for holder, name in self._places]


def _described(weights: list[Tensor]) -> tuple[list[int], list[torch.dtype]]:
    """What changes when a weight's memory is replaced."""
    return [*map(Tensor.data_ptr, weights)], [*map(_dtype_of, weights)]


def _is_at_hand(weight: Tensor, device: torch.device) -> bool:
    whole = type(weight) is nn.Parameter  # no shard, for instance
    return whole and weight.device == device and weight.dtype is torch.float32 and weight.is_contiguous()

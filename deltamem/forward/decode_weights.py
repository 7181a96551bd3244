"""DecodeWeights: an adapter's weights in all layers, looked up once for all tokens that are decoded with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from deltamem.adapter.layer_weights import LayerWeights
from deltamem.forward.packed import Packed


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


class LayerTensors(NamedTuple):
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
    parts: LayerWeights
    entrance: Tensor
    width: int
    bias: Tensor
    corrections: dict[str, Correction]

    @classmethod
    def of(cls, number: int, parts: LayerWeights) -> LayerTensors:
        """Look the tensors up."""
        entrance, bias, *maps = parts.weights()
        corrections = {
            role: Correction(weight, len(weight), place)
            for place, (role, weight) in enumerate(zip(parts.corrections, maps, strict=True))
        }
        return cls(number, parts, entrance, entrance.shape[1], bias, corrections)


class DecodeWeights:
    """The weights that calls take as they are: float32, contiguous, where the hidden states are.

    Args:
        layers: what each adapter has in each layer, by the layer's name and the adapter's.
        adapter: whose weights they are.
        device: of the hidden states.

    Attributes:
        layers: the weights by the layers' names; empty if some are of another kind or elsewhere.
        numbers: of the layers, by their names.
    """

    def __init__(self, layers: Mapping[str, Mapping[str, LayerWeights]], adapter: str, device: torch.device) -> None:
        self.device = device
        self._adapter = adapter
        own = {name: adapters for name, adapters in layers.items() if adapter in adapters}
        weights = [weight for adapters in own.values() for weight in adapters[adapter].weights()]
        if not all(_is_plain(weight, device) for weight in weights):
            own, weights = {}, []
        self._layers = [*own.values()]
        self._seen = [self._look_at(adapters) for adapters in self._layers]
        # What they are stored in is held, so that no other weight's memory can come to lie where they were seen.
        self._storages = [weight.untyped_storage() for weight in weights]
        self.layers = {name: LayerTensors.of(number, own[name][adapter]) for number, name in enumerate(own)}
        self.numbers = {name: weights.number for name, weights in self.layers.items()}
        self._made: dict[Any, Any] = {}

    @property
    def parts(self) -> LayerWeights:
        """Of some layer: what they all have in common is the adapter's configuration."""
        return next(iter(self.layers.values())).parts

    def once(self, key: Any, make: Callable[[DecodeWeights], Any]) -> Any:
        """Something made of these weights, made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]

    def wrote(self, states: Mapping[str, Tensor]) -> TypeGuard[Packed]:
        """Whether a token that was taken with these left the states, as they are: the generation goes on."""
        return isinstance(states, Packed) and states.numbers is self.numbers

    def still_valid(self, adapter: str, device: torch.device, start: Mapping[str, Tensor]) -> bool:
        """Whether these are an adapter's, and nothing of it was replaced since, neither its parts nor its weights' memory.

        While a generation goes on, only the first layer is looked at: to look at all of them takes every token a five-hundredth
        longer, and what replaces an adapter's weights, replaces those of all layers.

        Args:
            adapter: see above.
            device: where the weights are to be.
            start: the states from which a pass starts.
        """
        if not self.layers or (self._adapter, self.device) != (adapter, device):
            return False
        layers = self._layers[:1] if self.wrote(start) else self._layers
        return all(self._look_at(adapters) == seen for adapters, seen in zip(layers, self._seen, strict=False))

    def _look_at(self, adapters: Mapping[str, LayerWeights]) -> tuple[LayerWeights, list[int]] | None:
        """What the adapter has in a layer, and where the weights of that are in memory."""
        parts = adapters.get(self._adapter)
        return None if parts is None else (parts, [*map(Tensor.data_ptr, parts.weights())])


def _is_plain(weight: Tensor, device: torch.device) -> bool:
    whole = type(weight) is nn.Parameter and weight.numel() > 0  # no shard, and not what a shard leaves behind
    return whole and weight.device == device and weight.dtype is torch.float32 and weight.is_contiguous()

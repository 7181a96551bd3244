"""DecodeWeights: an adapter's weights in all layers, looked up once and reused for every decoded token.

Shapes: W width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from deltamem.adapter.layer_weights import LayerWeights
from deltamem.memory.snapshot import Snapshot
from deltamem.rule import DeltaKind


class Correction(NamedTuple):
    """One correction of a layer.

    Args:
        weight: the map from the reads to the projection's output, [features, read_width].
        features: width of the projection's output.
        number: index of the correction within the layer.
    """

    weight: Tensor
    features: int
    number: int


class LayerTensors(NamedTuple):
    """The weights of an adapter in one layer, as plain tensors.

    Args:
        number: index of the layer.
        weights: the adapter's modules.
        in_weight: the map from the hidden state to the rows that read and write, [rows, W].
        width: W.
        bias: the bias of the gates, [bias_rows].
        corrections: the corrections by role.
    """

    number: int
    weights: LayerWeights
    in_weight: Tensor
    width: int
    bias: Tensor
    corrections: dict[str, Correction]

    @classmethod
    def from_weights(cls, number: int, weights: LayerWeights) -> LayerTensors:
        """Look up the tensors of the layer with this index."""
        in_weight, bias, *maps = weights.tensors()
        corrections = {
            role: Correction(weight, len(weight), place)
            for place, (role, weight) in enumerate(zip(weights.corrections, maps, strict=True))
        }
        return cls(number, weights, in_weight, in_weight.shape[1], bias, corrections)


class DecodeWeights:
    """The weights of one adapter, if the fused kernels can use them: delta rule, float32, contiguous, on the right device.

    Args:
        layers: the weights in each layer, by the names of the layer and of the adapter.
        adapter: the name of the adapter.
        device: the device of the hidden states.

    Attributes:
        layers: the weights by the names of the layers; empty if the fused kernels cannot use all of them.
        names: the names of the layers, in the order of the states.
    """

    def __init__(self, layers: Mapping[str, Mapping[str, LayerWeights]], adapter: str, device: torch.device) -> None:
        self.device = device
        self._adapter = adapter
        own = {name: adapters for name, adapters in layers.items() if adapter in adapters}
        weights = [weight for adapters in own.values() for weight in adapters[adapter].tensors()]
        fused = all(isinstance(adapters[adapter].kind, DeltaKind) for adapters in own.values())
        if not fused or not all(_is_plain(weight, device) for weight in weights):
            own, weights = {}, []
        self._adapters = [*own.values()]
        self._seen = [self._look_at(adapters) for adapters in self._adapters]
        # Hold the storages, so that no new weight can be allocated at one of the recorded addresses.
        self._storages = [weight.untyped_storage() for weight in weights]
        self.layers = {name: LayerTensors.from_weights(number, own[name][adapter]) for number, name in enumerate(own)}
        self.names = tuple(self.layers)
        self._made: dict[Any, Any] = {}

    @property
    def first(self) -> LayerWeights:
        """The weights of the first layer, whose configuration all layers share."""
        return next(iter(self.layers.values())).weights

    @property
    def kind(self) -> DeltaKind:
        """The update rule; no other kind has fused kernels."""
        return cast(DeltaKind, self.first.kind)  # see __init__

    def once(self, key: Any, make: Callable[[DecodeWeights], Any]) -> Any:
        """Make something from these weights on the first request for a key, and return the same object afterwards."""
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]

    def still_valid(self, adapter: str, device: torch.device, start: Snapshot) -> bool:
        """Whether these are still the adapter's weights: neither its modules nor the storage of a weight was replaced.

        During a generation only the first layer is checked: checking all layers would cost 0.2% of a token's time, and whatever
        swaps an adapter's weights swaps them in every layer.

        Args:
            adapter: the name of the adapter.
            device: the device of the hidden states.
            start: the memory from which the pass starts.
        """
        if not self.layers or (self._adapter, self.device) != (adapter, device):
            return False
        goes_on = start.layers is self.names  # the previous token was decoded with these weights
        adapters = self._adapters[:1] if goes_on else self._adapters
        return all(self._look_at(adapter_of) == seen for adapter_of, seen in zip(adapters, self._seen, strict=False))

    def _look_at(self, adapters: Mapping[str, LayerWeights]) -> tuple[LayerWeights, list[int]] | None:
        """The adapter's modules in a layer, and the addresses of their weights."""
        weights = adapters.get(self._adapter)
        return None if weights is None else (weights, [*map(Tensor.data_ptr, weights.tensors())])


def _is_plain(weight: Tensor, device: torch.device) -> bool:
    whole = type(weight) is nn.Parameter and weight.numel() > 0  # neither sharded nor emptied by sharding
    return whole and weight.device == device and weight.dtype is torch.float32 and weight.is_contiguous()

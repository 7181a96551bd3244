"""DecodeWeights: an adapter's weights in all layers, looked up once for all tokens that are decoded with them."""

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
        weight: the map from the reads to the projection's output, [features, reads].
        features: width of the projection's output.
        number: of the layer's corrections, from 0.
    """

    weight: Tensor
    features: int
    number: int


class LayerTensors(NamedTuple):
    """What an adapter has in one layer, as tensors.

    Args:
        number: of the layer, from 0.
        weights: of the adapter.
        in_weight: the map from the hidden state to the rows that read and write, [rows, width].
        width: of the hidden states.
        bias: of the gates.
        corrections: by role.
    """

    number: int
    weights: LayerWeights
    in_weight: Tensor
    width: int
    bias: Tensor
    corrections: dict[str, Correction]

    @classmethod
    def from_weights(cls, number: int, weights: LayerWeights) -> LayerTensors:
        """Look the tensors up."""
        in_weight, bias, *maps = weights.tensors()
        corrections = {
            role: Correction(weight, len(weight), place)
            for place, (role, weight) in enumerate(zip(weights.corrections, maps, strict=True))
        }
        return cls(number, weights, in_weight, in_weight.shape[1], bias, corrections)


class DecodeWeights:
    """The weights that fused calls take as they are: of the delta rule, float32, contiguous, where the hidden states are.

    Args:
        layers: what each adapter has in each layer, by the layer's name and the adapter's.
        adapter: whose weights they are.
        device: of the hidden states.

    Attributes:
        layers: the weights by the layers' names; empty if some are of another kind or elsewhere.
        names: of the layers, in the order of the states.
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
        # What they are stored in is held, so that no other weight's memory can come to lie where they were seen.
        self._storages = [weight.untyped_storage() for weight in weights]
        self.layers = {name: LayerTensors.from_weights(number, own[name][adapter]) for number, name in enumerate(own)}
        self.names = tuple(self.layers)
        self._made: dict[Any, Any] = {}

    @property
    def first(self) -> LayerWeights:
        """Of the first layer: what all layers have in common is the adapter's configuration."""
        return next(iter(self.layers.values())).weights

    @property
    def kind(self) -> DeltaKind:
        """The update rule; other kinds have no fused calls."""
        return cast(DeltaKind, self.first.kind)  # see __init__

    def once(self, key: Any, make: Callable[[DecodeWeights], Any]) -> Any:
        """Something made of these weights, made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]

    def still_valid(self, adapter: str, device: torch.device, start: Snapshot) -> bool:
        """Whether these are an adapter's, and nothing of it was replaced since, neither its modules nor its weights' memory.

        While a generation goes on, only the first layer is looked at: checking all of them would cost 0.2% of a token's time,
        and whatever swaps an adapter's weights swaps them in every layer.

        Args:
            adapter: its name.
            device: where the weights are to be.
            start: the memory from which a pass starts.
        """
        if not self.layers or (self._adapter, self.device) != (adapter, device):
            return False
        goes_on = start.layers is self.names  # a token that was decoded with these left it
        adapters = self._adapters[:1] if goes_on else self._adapters
        return all(self._look_at(adapter_of) == seen for adapter_of, seen in zip(adapters, self._seen, strict=False))

    def _look_at(self, adapters: Mapping[str, LayerWeights]) -> tuple[LayerWeights, list[int]] | None:
        """What the adapter has in a layer, and where the weights of that are in memory."""
        weights = adapters.get(self._adapter)
        return None if weights is None else (weights, [*map(Tensor.data_ptr, weights.tensors())])


def _is_plain(weight: Tensor, device: torch.device) -> bool:
    whole = type(weight) is nn.Parameter and weight.numel() > 0  # no shard, and not what a shard leaves behind
    return whole and weight.device == device and weight.dtype is torch.float32 and weight.is_contiguous()

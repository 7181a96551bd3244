"""The weights of an adapter as plain tensors, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deltamem.adapter.files import read_config, read_weights
from deltamem.adapter.fingerprint import fingerprint_of
from deltamem.config import DeltaMemConfig
from deltamem.hook.attention_hook import ROLES
from deltamem.memory.snapshot import Snapshot, state_shapes
from deltamem.memory.soundness import check_fits_adapter
from deltamem.memory.state import DeltaMemState

# A weight's name in the file: the layer's name, and the kind of weight.
NAMED = re.compile(rf"base_model\.model\.(?P<layer>.+)\.delta_mem_(?P<part>gate_bias|(?P<map>in|{'|'.join(ROLES)})\.weight)")


class LayerWeights(NamedTuple):
    """The weights in one layer, all float32.

    Args:
        entrance: the map from the hidden states to the rows that read and write, [read_rows + write_rows, width].
        bias: of the gates, [bias_rows].
        corrections: the maps from the reads to the projections' outputs by role, [out_features, read_width].
    """

    entrance: Tensor
    bias: Tensor
    corrections: Mapping[str, Tensor]


@dataclass(frozen=True)
class Adapter:
    """An adapter.

    Args:
        name: its folder, or its name on the Hub.
        config: its configuration.
        layers: its weights by the names of the attention layers.
        fingerprint: identifies it; memories that it wrote bear it.
    """

    name: str
    config: DeltaMemConfig
    layers: Mapping[str, LayerWeights]
    fingerprint: str

    @classmethod
    def read(cls, name: str) -> Adapter:
        """Read an adapter from its folder, or the Hub.

        Raises:
            OSError: there is no such adapter.
            ValueError: it cannot be read, its weights have other names or shapes, or it writes segments.
        """
        config = read_config(name)
        if config.writes_segments:
            raise ValueError(
                f"the adapter {name!r} writes the means of messages (SSW), and vLLM sees tokens without messages; use an "
                "adapter that writes tokens (TSW, MSW), or `deltamem serve`"
            )
        parts: dict[str, dict[str, Tensor]] = {}
        for key, weight in read_weights(name).items():
            found = NAMED.fullmatch(key)
            if found is None:
                raise ValueError(
                    f"the adapter {name!r} has the weight {key}, which is none of a memory; vLLM takes adapters without "
                    "embeddings of their own"
                )
            parts.setdefault(found["layer"], {})[found["map"] or found["part"]] = weight.float()
        named = {f"{layer}.{part}": weight for layer, weights in parts.items() for part, weight in weights.items()}
        layers = {layer: _layer(f"{name}: {layer}", config, weights) for layer, weights in parts.items()}
        return cls(name, config, layers, fingerprint_of(config, named))

    def new_memory(self) -> DeltaMemState:
        """An empty memory."""
        parts = self.config.memory_kind.state_parts
        return DeltaMemState(Snapshot.zeros(tuple(self.layers), parts, 1, torch.device("cpu")))

    def accepted(self, state: DeltaMemState, name: str) -> DeltaMemState:
        """A memory with its layers in the order of the adapter's.

        Args:
            state: the memory.
            name: what an error calls it.

        Raises:
            ValueError: it does not fit the adapter, or another adapter wrote it.
        """
        check_fits_adapter(state.snapshot, state_shapes(self.layers, self.config.memory_kind.state_parts, 1), self.name)
        if state.fingerprint not in (None, self.fingerprint):
            raise ValueError(
                f"{name} was written by the adapter {state.fingerprint}, and this engine's is {self.fingerprint}: its numbers "
                "mean nothing to other weights. Use another name, or start the engine with the adapter that wrote it"
            )
        return DeltaMemState(state.snapshot.ordered(tuple(self.layers)), state.fingerprint)


def _layer(place: str, config: DeltaMemConfig, weights: Mapping[str, Tensor]) -> LayerWeights:
    kind = config.memory_kind
    corrections: dict[str, Tensor] = {role: weights[role] for role in config.corrections if role in weights}
    none = torch.empty(0, dtype=torch.float32, device="meta")
    entrance, bias = weights.get("in", none), weights.get("gate_bias", none)
    sound = (
        {*weights} == {"in", "gate_bias", *corrections}
        and {"q", "o"} & {*config.corrections} <= {*corrections}
        and entrance.ndim == 2
        and len(entrance) == kind.read_rows + kind.write_rows
        and bias.shape == (kind.bias_rows,)
        and all(weight.ndim == 2 and weight.shape[1] == kind.read_width for weight in corrections.values())
    )
    if not sound:
        shapes = {part: tuple(weight.shape) for part, weight in weights.items()}
        raise ValueError(
            f"{place} has weights of the shapes {shapes}, which are not those of the adapter's config; save it again"
        )
    return LayerWeights(entrance, bias, corrections)

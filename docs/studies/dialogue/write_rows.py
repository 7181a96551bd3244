"""The weights with which one layer writes, by state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deltamem.layer import DeltaMemLayer


@dataclass(frozen=True)
class WriteRows:
    """Views of a layer's weights, for N states of r rows each; the last state is the slowest at the start of a training.

    Args:
        values: the map from the hidden states to the values, `[N, r, W]`.
        logits: the map to the logits of β, `[N, r, W]`.
        bias: of these logits, `[N, r]`.
        kept: the bias of the logits of λ, `[N, r]`.
    """

    values: Tensor
    logits: Tensor
    bias: Tensor
    kept: Tensor

    @classmethod
    def from_layer(cls, layer: DeltaMemLayer) -> WriteRows:
        """The rows of a layer whose decay is learned."""
        weights = layer.active_weights
        *_, values, gates = weights.in_weight.split([*weights.kind.row_groups.values()])
        parts = values, gates.chunk(2)[0], *weights.gate_bias.chunk(2)
        return cls(*(rows.unflatten(0, (weights.config.num_states, -1)) for rows in parts))

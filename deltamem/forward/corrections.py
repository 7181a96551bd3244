"""Corrections: what an attention layer has read from its memory, and how that corrects the layer's projections."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deltamem.adapter.layer_weights import LayerWeights
from deltamem.adapter.offloading import loaded_weight
from deltamem.hook.projection import Projection


class Correcting(Protocol):
    """What the hooks on an attention layer's projections call while the layer runs."""

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """The output of a projection, [batch, tokens, out_features], with its correction if there is one.

        Args:
            layer: the name of the attention layer.
            role: of the projection.
            projection: where the projection lies in its module's output.
            output: may be changed in place.
        """
        ...


class Corrections(NamedTuple):
    """The corrections of one layer, for any number of tokens.

    Args:
        reads: [batch, tokens, read_width], contiguous.
        weights: of the adapter that read.
        in_place: whether the projections' outputs may be changed, as no gradients are computed.
        valid: [batch, tokens], where gradients are computed and there is padding, which is not corrected; None otherwise.
    """

    reads: Tensor
    weights: LayerWeights
    in_place: bool
    valid: Tensor | None

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Correcting`; the layer is the one that read."""
        linear = self.weights.corrections.get(role)
        if linear is None:
            return output
        weight = loaded_weight(linear, "weight")
        if self.in_place:
            projection.correct_(output, self.reads, weight, self.weights.scale)
            return output
        corrected = projection.corrected(output, self.reads, weight, self.weights.scale)
        return corrected if self.valid is None else torch.where(self.valid[:, :, None], corrected, output)

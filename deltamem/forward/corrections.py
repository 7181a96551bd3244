"""Corrections: an attention layer's reads from its memory, and their addition to the layer's projections."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deltamem.adapter.layer_weights import LayerWeights
from deltamem.adapter.offloading import loaded_weight
from deltamem.hook.projection import Projection


class Correcting(Protocol):
    """The interface that the hooks on an attention layer's projections call while the layer runs."""

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """The output of a projection, [batch, tokens, out_features], with its correction if there is one.

        Args:
            layer: the name of the attention layer.
            role: the role of the projection.
            projection: the place of the projection in its module's output.
            output: the uncorrected output; may be changed in place.
        """
        ...


class Corrections(NamedTuple):
    """The corrections of one layer, for any number of tokens.

    Args:
        reads: [batch, tokens, read_width], contiguous.
        weights: the weights of the adapter.
        in_place: whether the projections' outputs may be changed in place, because no gradients are computed.
        valid: [batch, tokens] if gradients are computed and there is padding, which is not corrected; None otherwise.
    """

    reads: Tensor
    weights: LayerWeights
    in_place: bool
    valid: Tensor | None

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Correcting`; `layer` is always the layer that read."""
        linear = self.weights.corrections.get(role)
        if linear is None:
            return output
        weight = loaded_weight(linear, "weight")
        if self.in_place:
            projection.correct_(output, self.reads, weight, self.weights.scale)
            return output
        corrected = projection.corrected(output, self.reads, weight, self.weights.scale)
        return corrected if self.valid is None else torch.where(self.valid[:, :, None], corrected, output)

"""Corrections: what an attention module has read from its memory, and how it corrects the module's projections."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deltamem.adapter.layer_weights import LayerWeights
from deltamem.adapter.offloading import loaded_weight
from deltamem.hook.projection import Projection


class Corrections(NamedTuple):
    """What an attention module has read from its memory, for the hooks on its projections.

    Args:
        values: `[batch, tokens, num_states * r]`, contiguous.
        parts: of the adapter that read.
        in_place: whether the projections' outputs may be changed, as no gradients are computed.
        valid: see `MemoryPass.valid_for_gradients`.
    """

    values: Tensor
    parts: LayerWeights
    in_place: bool
    valid: Tensor | None

    def of(self, layer: str) -> Corrections:
        """What an attention module has read, by its name: these."""
        return self

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """The output of a projection, `[batch, tokens, out_features]`, with its correction if there is one.

        Args:
            layer: the name of the attention module; its reads are these.
            role: of the projection.
            projection: see above.
            output: see above.
        """
        linear = self.parts.corrections.get(role)
        if linear is None:
            return output
        weight = loaded_weight(linear, "weight")
        if self.in_place:
            projection.correct_(output, self.values, weight, self.parts.scale)
            return output
        corrected = projection.corrected(output, self.values, weight, self.parts.scale)
        return corrected if self.valid is None else torch.where(self.valid[:, :, None], corrected, output)

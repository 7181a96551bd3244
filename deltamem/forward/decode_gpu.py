"""GpuDecodeStep: one token on a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltamem.forward.decode import DecodeStep
from deltamem.forward.decode_weights import DecodeWeights
from deltamem.hook.projection import Projection
from deltamem.rule.gpu.decode import correct_token, read_and_write_token


class GpuDecodeStep(DecodeStep):
    """Of any number of rows: one launch for the reads and the write, and one for each correction."""

    def __init__(self, weights: DecodeWeights, **options: Any) -> None:
        super().__init__(weights, **options)
        self._kind, self._reads_of = weights.kind, self._reads.unbind()
        buffers = (self._before.unbind(), self._projected.unbind(), self._reads_of, self._after.unbind())
        self._buffers = [*zip(*buffers, strict=True)]

    def _step(self, layer: str, hidden: Tensor) -> bool:
        tensors = self._layers.get(layer)
        if tensors is None or hidden.numel() != self.batch * tensors.width or layer in self._ran:
            return False
        buffers = self._buffers[tensors.number]
        read_and_write_token(
            hidden.contiguous(), tensors.in_weight, tensors.bias, *buffers, self._valid, self._kind, self.write
        )
        self._ran[layer] = tensors.number
        return True

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Correcting.apply`."""
        tensors = self._layers[layer]
        correction = tensors.corrections.get(role)
        if correction is None:
            return output
        if output.numel() != self.batch * correction.features or not output.is_contiguous():
            return self._corrections(layer).apply(layer, role, projection, output)
        correct_token(output, self._reads_of[tensors.number], correction.weight, self._scale)
        return output

"""GpuDecodeStep: the decode step on a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltamem.forward.decode import DecodeStep
from deltamem.forward.decode_weights import Correction, DecodeWeights, LayerTensors
from deltamem.rule.gpu.decode import correct_token, read_and_write_token


class GpuDecodeStep(DecodeStep):
    """A decode step for any number of rows; each layer takes one launch to read and write, and one per correction."""

    takes_padding = True

    def __init__(self, weights: DecodeWeights, **options: Any) -> None:
        super().__init__(weights, **options)
        self._kind, self._reads_of = weights.kind, self._reads.unbind()
        buffers = (self._before.unbind(), self._projected.unbind(), self._reads_of, self._after.unbind())
        self._buffers = [*zip(*buffers, strict=True)]

    def _step(self, tensors: LayerTensors, hidden: Tensor) -> None:
        buffers = self._buffers[tensors.number]
        read_and_write_token(
            hidden.contiguous(), tensors.in_weight, tensors.bias, *buffers, self._valid, self._kind, self.write
        )

    def _correct(self, tensors: LayerTensors, correction: Correction, output: Tensor) -> bool:
        correct_token(output, self._reads_of[tensors.number], correction.weight, self._scale)
        return True

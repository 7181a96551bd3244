"""GpuDecodeStep: one token on a GPU."""

from __future__ import annotations

from torch import Tensor

from deltamem.forward.decode import DecodeStep
from deltamem.forward.decode_weights import DecodeWeights
from deltamem.hook.projection import Projection
from deltamem.memory.snapshot import Snapshot
from deltamem.rule.gpu.decode import correct_token, read_and_write_token


class GpuDecodeStep(DecodeStep):
    """Of any number of rows: one launch for the reads and the write, and one for each correction."""

    def __init__(self, at_hand: DecodeWeights, start: Snapshot, valid: Tensor | None, writes: bool) -> None:
        super().__init__(at_hand, start, valid, writes)
        self._reads = self._values.unbind()
        self._buffers = [*zip(self._start.unbind(), self._projected.unbind(), self._reads, self._end.unbind(), strict=True)]

    def read_and_write(self, layer: str, hidden: Tensor) -> bool:
        """See `DecodeStep.read_and_write`."""
        weights = self._layers.get(layer)
        if weights is None or hidden.numel() != self._batch * weights.width or layer in self._ran:
            return False
        buffers, gating = self._buffers[weights.number], weights.parts.gating
        read_and_write_token(hidden.contiguous(), weights.entrance, weights.bias, *buffers, self._valid, gating, self._writes)
        self._ran[layer] = weights.number
        return True

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Corrections.apply`."""
        weights = self._layers[layer]
        correction = weights.corrections.get(role)
        if correction is None:
            return output
        if output.numel() != self._batch * correction.features or not output.is_contiguous():
            return self.of(layer).apply(layer, role, projection, output)
        correct_token(output, self._reads[weights.number], correction.weight, self._scale)
        return output

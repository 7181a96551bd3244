"""CpuDecodeStep: one token on a CPU."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from deltamem.forward.decode import DecodeStep
from deltamem.forward.decode_weights import DecodeWeights
from deltamem.hook.projection import Projection
from deltamem.memory.snapshot import Snapshot
from deltamem.rule.cpu.decode import Table, correct_token, read_and_write_token


class CpuDecodeStep(DecodeStep):
    """Of a single row that counts: compiled calls, which are given addresses."""

    def __init__(self, at_hand: DecodeWeights, start: Snapshot, valid: Tensor | None, writes: bool) -> None:
        super().__init__(at_hand, start, valid, writes)
        self._rows = at_hand.once(writes, partial(_table, writes=writes)).rows
        self._reads = self._values.data_ptr()
        self._buffers = (self._start.data_ptr(), self._projected.data_ptr(), self._reads, self._end.data_ptr())

    def read_and_write(self, layer: str, hidden: Tensor) -> bool:
        """See `DecodeStep.read_and_write`."""
        weights = self._layers.get(layer)
        if weights is None or hidden.numel() != weights.width or layer in self._ran:
            return False
        if hidden.dtype is not torch.float32 or not hidden.is_contiguous():
            hidden = hidden.to(torch.float32).contiguous()
        read_and_write_token(self._rows[weights.number], *self._buffers, hidden.data_ptr())
        self._ran[layer] = weights.number
        return True

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Corrections.apply`."""
        weights = self._layers[layer]
        correction = weights.corrections.get(role)
        if correction is None:
            return output
        if output.dtype is not torch.float32 or output.numel() != correction.features or not output.is_contiguous():
            return self.of(layer).apply(layer, role, projection, output)
        correct_token(self._rows[weights.number], correction.number, self._scale, self._reads, output.data_ptr())
        return output


def _table(at_hand: DecodeWeights, writes: bool) -> Table:
    layers = [*at_hand.layers.values()]
    return Table(
        [weights.entrance for weights in layers],
        [weights.bias for weights in layers],
        [[correction.weight for correction in weights.corrections.values()] for weights in layers],
        at_hand.parts.gating,
        writes,
    )

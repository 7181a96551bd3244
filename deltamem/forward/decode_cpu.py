"""CpuDecodeStep: the decode step on a CPU.

Shapes: L layers, B batch rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltamem.forward.decode import DecodeStep
from deltamem.forward.decode_weights import Correction, DecodeWeights, LayerTensors
from deltamem.rule.cpu.decode import Table, correct_token, read_and_write_token


class CpuDecodeStep(DecodeStep):
    """A decode step for rows without padding; its compiled functions take addresses.

    Its buffers are [B, L, ...] in memory, so that a row's part is in one piece, and [L, B, ...] as tensors.
    """

    takes_padding = False

    def __init__(self, weights: DecodeWeights, **options: Any) -> None:
        super().__init__(weights, **options)
        self._rows = weights.once(self.write, partial(_table, writes=self.write)).rows
        self._reads_address = self._reads.data_ptr()
        before, projected, after = self._before.data_ptr(), self._projected.data_ptr(), self._after.data_ptr()
        self._buffers = before, projected, self._reads_address, after

    def _new_buffer(self, layers: int, *shape: int) -> Tensor:
        return torch.empty((self.batch, layers, *shape), dtype=torch.float32, device="cpu").transpose(0, 1)

    def _laid_out(self, states: Tensor) -> Tensor:
        by_row = states.transpose(0, 1)
        return states if by_row.is_contiguous() else by_row.contiguous().transpose(0, 1)

    def _step(self, tensors: LayerTensors, hidden: Tensor) -> None:
        if hidden.dtype is not torch.float32 or not hidden.is_contiguous():
            hidden = hidden.to(torch.float32).contiguous()
        read_and_write_token(self._rows[tensors.number], self.batch, *self._buffers, hidden.data_ptr())

    def _correct(self, tensors: LayerTensors, correction: Correction, output: Tensor) -> bool:
        if output.dtype is not torch.float32:
            return False
        row = self._rows[tensors.number]
        correct_token(row, correction.number, self.batch, self._scale, self._reads_address, output.data_ptr())
        return True


def _table(weights: DecodeWeights, writes: bool) -> Table:
    layers = [*weights.layers.values()]
    return Table(
        [tensors.in_weight for tensors in layers],
        [tensors.bias for tensors in layers],
        [[correction.weight for correction in tensors.corrections.values()] for tensors in layers],
        weights.kind,
        writes,
    )

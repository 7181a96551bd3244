"""Projection: the query, key, value or output projection of an attention module, on its own or packed with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Projection:
    """A query, key, value or output projection: a module's whole output, or a part of a packed one.

    The output consists of `groups` groups of equal size. The first `before` and the last `after` features of each group belong
    to other roles.
    """

    module: nn.Module
    groups: int = 1
    before: int = 0
    after: int = 0

    @property
    def out_features(self) -> int:
        """The number of output features that belong to this projection."""
        return width_out(self.module) - self.groups * (self.before + self.after)

    def corrected(self, output: Tensor, reads: Tensor, weight: Tensor, scale: float) -> Tensor:
        """The module's output with a correction of this projection.

        Args:
            output: `[batch, tokens, width]`.
            reads: `[batch, tokens, rows]`, float32.
            weight: `[out_features, rows]`.
            scale: factor of the correction `reads weight^T`.
        """
        correction = (scale * F.linear(reads.to(weight.dtype), weight).float()).to(output.dtype)
        if self._packed:
            parts = rearrange(correction, "b t (g d) -> b t g d", g=self.groups)
            correction = rearrange(F.pad(parts, (self.before, self.after)), "b t g d -> b t (g d)")
        return output + correction

    def correct_(self, output: Tensor, reads: Tensor, weight: Tensor, scale: float) -> None:
        """Like `corrected`, but in place, for passes without gradients."""
        if not self._packed and output.is_contiguous():
            rows = reads.view(-1, reads.shape[-1]).to(output.dtype)
            output.view(-1, output.shape[-1]).addmm_(rows, weight.to(output.dtype).t(), alpha=scale)  # one pass over the output
            return
        correction = (scale * F.linear(reads.to(weight.dtype), weight).float()).to(output.dtype)
        groups = (self.groups, -1)
        self._own(output.unflatten(-1, groups), dim=-1).add_(correction.unflatten(-1, groups))

    def rows_of(self, weight: Tensor) -> Tensor:
        """The rows of the module's weight that belong to this projection, `[out_features, in_features]`."""
        weight = weight.T if isinstance(self.module, Conv1D) else weight
        groups = rearrange(weight, "(g d) i -> g d i", g=self.groups)
        return rearrange(self._own(groups, dim=1), "g d i -> (g d) i")

    @property
    def _packed(self) -> bool:
        return bool(self.before or self.after)

    def _own(self, groups: Tensor, dim: int) -> Tensor:
        """The part of every group that belongs to this projection, as a view."""
        return groups.narrow(dim, self.before, groups.shape[dim] - self.before - self.after)


def width_in(module: nn.Module) -> int:
    """The input width of a linear map: `nn.Linear`, a module with its attributes, or GPT-2's transposed `Conv1D`."""
    return cast(int, module.nx if isinstance(module, Conv1D) else module.in_features)


def width_out(module: nn.Module) -> int:
    """The output width of a linear map."""
    return cast(int, module.nf if isinstance(module, Conv1D) else module.out_features)


def is_linear(module: object) -> bool:
    """Whether a module is a linear map of known widths."""
    return isinstance(module, nn.Module) and (isinstance(module, Conv1D) or hasattr(module, "out_features"))

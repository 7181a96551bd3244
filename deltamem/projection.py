"""Projection: one of an attention's four projections, or the part of a packed one that is a role's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Projection:
    """A query, key, value or output projection: a module's output, or the part of a packed one's.

    Its outputs lie in `groups` groups of equal size; of each, the first `before` and the last `after` are somebody else's.
    """

    module: nn.Module
    groups: int = 1
    before: int = 0
    after: int = 0

    @property
    def out_features(self) -> int:
        """Number of outputs that are this projection's."""
        return width_out(self.module) - self.groups * (self.before + self.after)

    def place(self, correction: Tensor) -> Tensor:
        """Put a correction `[batch, tokens, out_features]` where this projection is in the module's output, zero elsewhere."""
        if not self.before and not self.after:
            return correction
        parts = F.pad(rearrange(correction, "b t (g d) -> b t g d", g=self.groups), (self.before, self.after))
        return rearrange(parts, "b t g d -> b t (g d)")

    def rows_of(self, weight: Tensor) -> Tensor:
        """Those rows of the module's weight that are this projection's, `[out_features, in_features]`."""
        weight = weight.T if isinstance(self.module, Conv1D) else weight
        groups = rearrange(weight, "(g d) i -> g d i", g=self.groups)
        return rearrange(groups[:, self.before : groups.shape[1] - self.after], "g d i -> (g d) i")


def width_in(module: nn.Module) -> int:
    """Width of what enters a linear map: `nn.Linear`, what is derived from it or like it, or GPT-2's transposed `Conv1D`."""
    return cast(int, module.nx if isinstance(module, Conv1D) else module.in_features)


def width_out(module: nn.Module) -> int:
    """Width of what leaves a linear map."""
    return cast(int, module.nf if isinstance(module, Conv1D) else module.out_features)


def is_linear(module: object) -> bool:
    """Whether a module is a linear map of known widths."""
    return isinstance(module, nn.Module) and (isinstance(module, Conv1D) or hasattr(module, "out_features"))

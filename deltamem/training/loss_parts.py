"""What a loss is the sum of, averaged over the steps between two logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from deltamem.training.costs import TERMS
from deltamem.training.views import ALL_VIEWS

WRITE_PENALTY = "write_penalty"
# In a fixed order, as all processes add up their parts, though each may have had other views.
PARTS = [*(f"{view}_{term}" for view in ALL_VIEWS for term in TERMS), WRITE_PENALTY]


class LossParts:
    """Adds up the parts of the loss: `VIEW_TERM` for each view and its `TERMS`, and the write penalty."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # kept on the batches' device: reading them would synchronise
        self._steps = 0

    def begin_step(self) -> None:
        """Count an optimizer step, whose parts may come from several batches."""
        self._steps += 1

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Add a batch's contributions to the loss of its step."""
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0) + part.detach()

    def figures(self, device: torch.device, mean: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the parts per step since the last call, as `loss_PART`; empty if the loss has fewer than two.

        Args:
            device: where the processes exchange numbers.
            mean: the mean of a tensor over all processes, each of which must call this.
        """
        sums = torch.zeros(2, len(PARTS), dtype=torch.float32, device=device)
        for name, total in self._sums.items():
            sums[:, PARTS.index(name)] = torch.stack([total.float(), torch.ones_like(total, dtype=torch.float32)])
        totals, there = mean(sums).tolist()
        steps, self._steps, self._sums = max(self._steps, 1), 0, {}
        figures = {f"loss_{name}": total / steps for name, total, used in zip(PARTS, totals, there, strict=True) if used}
        return figures if len(figures) > 1 else {}

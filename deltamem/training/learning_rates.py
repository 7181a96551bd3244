"""Which learning rate suits a backbone of some size. docs/training.md says what was measured."""

from __future__ import annotations

from torch import nn

# The highest rates that are known to train well, by the parameters of the largest backbones they suit.
RATES = ((200_000_000, 4e-3), (1_000_000_000, 1e-3))
RATE_OF_LARGER = 2e-4


def suitable_rate(model: nn.Module) -> float:
    """The highest learning rate that suits a backbone, from the number of its (frozen) parameters."""
    parameters = backbone_size(model)
    return next((rate for most, rate in RATES if parameters <= most), RATE_OF_LARGER)


def backbone_size(model: nn.Module) -> int:
    """Count the frozen parameters of a model with an adapter."""
    return sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)

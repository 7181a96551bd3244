"""Compares memories."""

import torch

from deltamem import DeltaMemState


def same_state(first: DeltaMemState, second: DeltaMemState, tolerance: float = 1e-5) -> bool:
    near = (torch.allclose(first.tensors[name], second.tensors[name], atol=tolerance, rtol=0) for name in first.tensors)
    return first.tokens == second.tokens and all(near)

"""The delta rule as one operator of PyTorch's, which torch.compile takes as it is: one graph for texts of every length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltamem.rule.backends import BACKENDS


@torch.library.custom_op("deltamem::delta_rule", mutates_args=())
def delta_rule_operator(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """See `deltamem.rule.delta_rule`; all tensors checked, float32 and without a mask."""
    reads, end = BACKENDS[backend](q, k, v, keep, erase, write, state)
    return reads.contiguous(), end.contiguous()


@delta_rule_operator.register_fake
def _shapes(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, backend: str) -> Any:
    return q.new_empty(q.shape), state.new_empty(state.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    """Run the backend again, this time with its graph."""
    tensors = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
    with torch.enable_grad():
        outputs = BACKENDS[ctx.backend](*tensors)
    return *torch.autograd.grad(outputs, tensors, gradients, allow_unused=True), None


torch.library.register_autograd("deltamem::delta_rule", _backward, setup_context=_save)

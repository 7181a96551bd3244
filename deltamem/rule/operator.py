"""The delta rule as PyTorch operators, which torch.compile does not trace: one graph serves texts of every length.

Compiled kernels cannot be traced, so their gradient is an operator as well. A backend in plain PyTorch computes its gradient
by running again with autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deltamem.rule.backends import BACKENDS, rule


@torch.library.custom_op("deltamem::delta_rule", mutates_args=())
def delta_rule_operator(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """See `deltamem.rule.delta_rule`; all tensors are checked and float32, and there is no mask."""
    reads, end = rule(backend)(q, k, v, keep, erase, write, state)
    return reads.contiguous(), end.contiguous()


@delta_rule_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor, backend: str) -> Any:
    return q.new_empty(q.shape), state.new_empty(state.shape)


@torch.library.custom_op(
    "deltamem::delta_rule_gradients",
    mutates_args=(),
    schema="(Tensor[] inputs, Tensor[] gradients, str backend) -> Tensor[]",  # torch 2.6 does not read `list[Tensor]`
)
def _delta_rule_gradients(inputs: list[Tensor], gradients: list[Tensor], backend: str) -> list[Tensor]:
    return gradients_again(rule(backend), inputs, gradients)


@_delta_rule_gradients.register_fake
def _(inputs: list[Tensor], gradients: list[Tensor], backend: str) -> Any:
    return [x.new_empty(x.shape) for x in inputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    if BACKENDS[ctx.backend].package is None:  # plain PyTorch
        return *gradients_again(rule(ctx.backend), ctx.saved_tensors, gradients), None
    return *_delta_rule_gradients(list(ctx.saved_tensors), list(gradients), ctx.backend), None


torch.library.register_autograd("deltamem::delta_rule", _backward, setup_context=_save)


def gradients_again(function: Callable[..., Any], inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a function's inputs, by running it again with autograd."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = function(*inputs)
    return list(torch.autograd.grad(outputs, inputs, gradients, allow_unused=True))

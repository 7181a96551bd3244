"""The fused functions from projections to reads as a PyTorch operator; see `operator.py`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from deltamem.rule.backends import BACKENDS, load
from deltamem.rule.gates import Decay, Gating
from deltamem.rule.operator import gradients_again

Passed = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("deltamem::delta_memory", mutates_args=())
def delta_memory_operator(
    projected: Tensor,
    gate_bias: Tensor,
    state: Tensor,
    mask: Tensor | None,
    r: int,
    num_states: int,
    decay: str,
    decay_first: bool,
    rowwise_gates: bool,
    reads: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `deltamem.rule.delta_memory`; all tensors are checked and float32, the mask is boolean.

    The backend must have a fused function for sequences, or one for a step: a single token without gradients.
    """
    gating = Gating(r, num_states, cast(Decay, decay), decay_first, rowwise_gates)
    step = BACKENDS[backend].step
    if step is not None:
        return cast(Passed, load(step)(projected, gate_bias, state, mask, gating))
    return _sequence(backend, projected, gate_bias, state, mask, gating, reads)


@delta_memory_operator.register_fake
def _(projected: Tensor, gate_bias: Tensor, state: Tensor, mask: Any, r: int, num_states: int, *settings: Any) -> Any:
    batch, tokens, _ = projected.shape
    width = num_states * r if settings[-2] else 0
    return projected.new_empty(batch, tokens, width), state.new_empty(state.shape), state.new_empty(batch, num_states)


@torch.library.custom_op(
    "deltamem::delta_memory_gradients",
    mutates_args=(),
    schema=(  # torch 2.6 does not read `list[Tensor]`
        "(Tensor[] inputs, Tensor? mask, Tensor[] gradients, int r, int num_states, str decay, bool decay_first, "
        "bool rowwise_gates, bool reads, str backend) -> Tensor[]"
    ),
)
def _gradients(
    inputs: list[Tensor],
    mask: Tensor | None,
    gradients: list[Tensor],
    r: int,
    num_states: int,
    decay: str,
    decay_first: bool,
    rowwise_gates: bool,
    reads: bool,
    backend: str,
) -> list[Tensor]:
    """The gradients of projected, gate_bias and state."""
    gating = Gating(r, num_states, cast(Decay, decay), decay_first, rowwise_gates)

    def run(projected: Tensor, gate_bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _sequence(backend, projected, gate_bias, state, mask, gating, reads)

    return gradients_again(run, inputs, gradients)


@_gradients.register_fake
def _(inputs: list[Tensor], *others: Any) -> Any:
    return [x.new_empty(x.shape) for x in inputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    projected, gate_bias, state, mask, *ctx.settings = inputs
    ctx.save_for_backward(projected, gate_bias, state, mask)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    *inputs, mask = ctx.saved_tensors
    return *_gradients(inputs, mask, [x.contiguous() for x in gradients], *ctx.settings), *(None for _ in range(8))


torch.library.register_autograd("deltamem::delta_memory", _backward, setup_context=_save)


def _sequence(
    backend: str, projected: Tensor, gate_bias: Tensor, state: Tensor, mask: Tensor | None, gating: Gating, reads: bool
) -> Passed:
    sequence = load(cast(str, BACKENDS[backend].sequence))
    return cast(Passed, sequence(projected, gate_bias, state, mask, gating, reads, writes=True))

"""The Triton backend of the delta rule, with its gradient."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltamem.rule.gpu.chunks import chunk_maps, chunk_starts, read_chunks
from deltamem.rule.gpu.gradients import chunk_ends, chunk_offsets, token_gradients

# Tokens per chunk. Both the tokens of a chunk and the chunks of a memory are sequential.
CHUNK = 64
# How many elements of recomputed states a program may hold in its registers.
_HELD_NUMBERS = 4096


def triton_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See `deltamem.rule.delta_rule`; q to write are [batch, heads, tokens, r], state is [batch, heads, r, r], on CUDA."""
    return _DeltaRule.apply(q, k, v, keep, erase, write, state)


def warps(numbers: int) -> int:
    """The number of warps for a program that works on this many elements at a time: about 32 per thread."""
    return min(8, max(1, numbers // 1024))


def on_device_of(tensor: Tensor) -> Any:
    """Make the tensor's device current: Triton launches there, and a model may be spread over several devices."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class _Sizes:
    """The sizes that the kernels take, from tokens [batch, heads, length, r]."""

    def __init__(self, tokens: Tensor) -> None:
        batch, heads, self.length, self.r = tokens.shape
        self.memories, self.chunks = batch * heads, triton.cdiv(self.length, CHUNK)
        self.R = triton.next_power_of_2(self.r)
        self.of_chunk = (self.length, self.chunks, self.r, self.R, CHUNK)
        self.of_memory = (self.chunks, self.r, self.R)
        self.warps = warps(self.R * self.R)

    def maps(self, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
        """The map of every row over every chunk: `[memories, chunks, r, r, r]` and `[memories, chunks, r, r]`."""
        matrix = k.new_empty(self.memories, self.chunks, self.r, self.r, self.r)
        offset = self.states(k)
        grid = (self.memories * self.chunks, self.r)
        chunk_maps[grid](k, v, keep, erase, write, matrix, offset, *self.of_chunk, num_warps=self.warps)
        return matrix, offset

    def states(self, like: Tensor) -> Tensor:
        """An uninitialised buffer with a state per chunk: `[memories, chunks, r, r]`."""
        return like.new_empty(self.memories, self.chunks, self.r, self.r)


class _DeltaRule(torch.autograd.Function):
    """Saves the inputs and the state before every chunk for the backward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        inputs = tuple(x.contiguous() for x in inputs)
        *tokens, state = inputs
        sizes = _Sizes(tokens[0])
        rows, places = (sizes.memories, sizes.r), (sizes.memories * sizes.chunks,)
        with on_device_of(state):
            matrix, offset = sizes.maps(*tokens[1:])
            starts, end, reads = sizes.states(state), torch.empty_like(state), torch.empty_like(tokens[0])
            chunk_starts[rows](matrix, offset, state, starts, end, *sizes.of_memory, num_warps=sizes.warps)
            read_chunks[places](*tokens, starts, reads, *sizes.of_chunk, num_warps=sizes.warps)
        ctx.save_for_backward(*tokens, starts)
        return reads, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_reads: Tensor, d_end: Tensor) -> tuple[Tensor, ...]:
        *tokens, starts = ctx.saved_tensors
        q, k, _, keep, erase, _ = tokens
        d_reads, d_end = d_reads.contiguous(), d_end.contiguous()
        sizes = _Sizes(q)
        gradients, d_state = tuple(torch.empty_like(x) for x in tokens), torch.empty_like(d_end)
        held = max(1, min(16, CHUNK, _HELD_NUMBERS // sizes.R**2))
        rows, places = (sizes.memories, sizes.r), (sizes.memories * sizes.chunks,)
        with on_device_of(q):
            matrix, offset = sizes.maps(*tokens[1:])
            ends = sizes.states(q)
            chunk_offsets[places](q, k, keep, erase, d_reads, offset, *sizes.of_chunk, num_warps=sizes.warps)
            chunk_ends[rows](matrix, offset, d_end, ends, d_state, *sizes.of_memory, num_warps=sizes.warps)
            token_gradients[places](
                *tokens, starts, ends, d_reads, *gradients, *sizes.of_chunk, held, num_warps=warps(held * sizes.R**2)
            )
        return *gradients, d_state

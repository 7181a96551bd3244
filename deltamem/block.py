"""The `with model.memory(state)` block: which memory the passes inside it read and write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deltamem.contents import Contents
from deltamem.cuda_graphs import NOT_IN_A_GRAPH
from deltamem.state import DeltaMemState, find_not_finite

_tickets = itertools.count()
# The open blocks of this thread or task, innermost last; of any model.
_open_blocks: ContextVar[tuple[MemoryBlock, ...]] = ContextVar("deltamem_blocks", default=())


@dataclass(frozen=True)
class Generation:
    """What a running `generate` call means for its passes.

    Args:
        branches: continuations per row: beams, or returned sequences.
        prompt_tokens: length of the prompt.
        start: the block's memory when the call began; without a KV cache every step starts from there again.
    """

    branches: int
    prompt_tokens: int
    start: Contents


class MemoryBlock:
    """An open `with model.memory(state)` block.

    Args:
        owner: the tuner whose passes it concerns.
        adapter: the name of the adapter that the memory belongs to.
        state: the memory that is read and written.
        write: whether tokens write.
        segment_ids: `[batch, tokens]`, for adapters that write segments.
        keep_open: whether each row's last segment goes on in a later pass.
        detach: cut the autograd graph at the block's end, so that the state is a plain value.
        ticket: a number of its own, as a tensor: a compiled graph is then the same for all blocks.
        generation: the call of `generate` that runs in this block, if any.
        write_gates: mean write gate β of the passes in this block that wrote and recorded gradients, one per pass.
    """

    def __init__(
        self,
        owner: Any,
        adapter: str,
        state: DeltaMemState,
        write: bool = True,
        segment_ids: Tensor | None = None,
        keep_open: bool = False,
        detach: bool = True,
    ) -> None:
        self.owner = owner
        self.adapter = adapter
        self.state = state
        self.write = write
        self.segment_ids = segment_ids
        self.keep_open = keep_open
        self.detach = detach
        self.ticket = torch.tensor(next(_tickets))
        self.generation: Generation | None = None
        self.write_gates: list[Tensor] = []

    @classmethod
    def find(cls, owner: Any) -> MemoryBlock | None:
        """The innermost open block of a model, in this thread or task.

        While torch.compile traces it cannot ask for the thread: the graph gets the model's newest block of any thread, and an
        operator that fails if that is not the caller's when the graph runs.
        """
        if torch.compiler.is_compiling():
            return owner.open_blocks[-1] if owner.open_blocks else None
        return next((block for block in reversed(_open_blocks.get()) if block.owner is owner), None)

    @property
    def is_open(self) -> bool:
        """Whether the block has not ended yet."""
        return self in self.owner.open_blocks

    def check_adapter(self) -> None:
        """Refuse to go on with another adapter than the block was opened for.

        Raises:
            RuntimeError: another adapter is active now.
        """
        active = self.owner.active_adapters
        if active[:1] != [self.adapter]:
            raise RuntimeError(
                f"this memory was opened for the adapter {self.adapter!r}, but {active} is active now, and would take its "
                "numbers for its own. Do not switch adapters while a memory is open"
            )


@torch.library.custom_op("deltamem::confirm_block", mutates_args=(), tags=NOT_IN_A_GRAPH)
def confirm_block(states: Tensor, ticket: Tensor) -> Tensor:
    """A copy of the states, if the block with this ticket is the caller's own; part of compiled graphs.

    Not of CUDA graphs: these would not ask again.

    Raises:
        RuntimeError: it is another thread's or task's.
    """
    blocks = _open_blocks.get()
    block = next((block for block in blocks if block.ticket.item() == ticket.item()), None)
    if block is None or MemoryBlock.find(block.owner) is not block:
        raise RuntimeError(
            "a compiled model ran while another thread or task had a memory of it open; nothing was read or written. Let one "
            "at a time use a compiled model, or call it uncompiled"
        )
    return states.clone()


def confirmed(contents: Contents, block: MemoryBlock) -> Contents:
    """The same memory, which a compiled graph can only read if the block is the caller's own."""
    first, *_ = contents.states
    return replace(contents, states={**contents.states, first: confirm_block(contents.states[first], block.ticket)})


@confirm_block.register_fake
def _shape(states: Tensor, ticket: Tensor) -> Tensor:
    return torch.empty_like(states)


confirm_block.register_autograd(lambda ctx, gradient: (gradient, None))


@contextmanager
def open_block(block: MemoryBlock) -> Iterator[MemoryBlock]:
    """Open a block. If it ends in an error, or the memory is no longer finite, the state is as it was before.

    Raises:
        RuntimeError: another thread or task is writing to this memory.
    """
    mine = _open_blocks.get()
    if block.write and any(
        other.state is block.state and other.write and other not in mine for other in block.owner.open_blocks
    ):
        raise RuntimeError(
            "another thread or task is writing to this memory; of two writers neither would know what it was told. Let one "
            "finish first, or give the other a clone()"
        )
    before, fingerprint = block.state.contents, block.state.fingerprint
    token = _open_blocks.set((*mine, block))
    block.owner.open_blocks.append(block)
    try:
        yield block
        if block.state.contents is not before:
            _commit(block)
    except BaseException:
        block.state.contents, block.state.fingerprint = before, fingerprint
        raise
    finally:
        block.owner.open_blocks.remove(block)
        _open_blocks.reset(token)


def _commit(block: MemoryBlock) -> None:
    """Check what was written, say by which adapter, and make it a plain value.

    Raises:
        FloatingPointError: the memory is no longer finite.
        RuntimeError: another adapter is active than the block was opened for.
    """
    bad = find_not_finite(block.state.contents)
    if bad is not None:
        raise FloatingPointError(
            f"the memory of {bad} became NaN or infinite; it was left as it was before this block. Look for NaN or infinite "
            "values in the input or the adapter's weights"
        )
    block.check_adapter()
    # Weights that are being trained have changed by the time somebody asks.
    block.state.fingerprint = None if block.owner.model.training else block.owner.fingerprint()
    if block.detach:
        block.state.contents = block.state.contents.map(_plain)


def _plain(tensor: Tensor) -> Tensor:
    """Without a graph, and usable in training even if it was made under inference mode."""
    if not tensor.is_inference():
        return tensor.detach()
    with torch.inference_mode(False):
        return tensor.clone()

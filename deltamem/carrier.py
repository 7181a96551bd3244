"""Carries the memory through one forward pass of the whole model: where it starts, and where its outcome goes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltamem.block import MemoryBlock
from deltamem.cache import MemoryCacheLayer
from deltamem.passes import MemoryPass, Segments, States
from deltamem.validity import valid_tokens

# Keywords of transformers' paged attention and packed rows, where one batch row holds several users' tokens.
PACKED_KEYWORDS = ("block_table", "cu_seq_lens_q")


@dataclass(frozen=True)
class Generation:
    """What a running `generate` call means for its passes.

    Args:
        branches: continuations per row: beams, or returned sequences.
        prompt_tokens: length of the prompt.
        start: the block's states when the call began; without a KV cache every step starts from there again.
    """

    branches: int
    prompt_tokens: int
    start: States


_generation: ContextVar[Generation | None] = ContextVar("deltamem_generation", default=None)


@contextmanager
def generating(owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any], default_config: Any) -> Iterator[None]:
    """Let the passes inside know that they belong to `generate(*args, **kwargs)` of the tuner `owner`."""
    block = MemoryBlock.find(owner)
    config = kwargs.get("generation_config") or default_config
    beams, returned = (kwargs.get(name) or getattr(config, name, None) or 1 for name in ("num_beams", "num_return_sequences"))
    given = (*args[:1], *map(kwargs.get, ("inputs", "input_ids", "inputs_embeds")))
    prompt = next((tensor for tensor in given if tensor is not None), None)
    generation = Generation(
        branches=max(beams, returned),
        prompt_tokens=0 if prompt is None else prompt.shape[1],
        start={} if block is None else block.state.tensors,
    )
    token = _generation.set(generation)
    try:
        yield
    finally:
        _generation.reset(token)


@dataclass(frozen=True)
class Carrier:
    """Begins and ends the passes of one adapter.

    Args:
        owner: the tuner.
        adapter: name of the active adapter.
        segments_of: what one write is ("message", "sentence"), None if every token writes.
    """

    owner: Any
    adapter: str
    segments_of: str | None

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> MemoryPass:
        """Make the pass for a call of the model.

        Raises:
            ValueError: rows, segment ids or a cache that do not fit the memory.
            NotImplementedError: several users in one batch row.
        """
        call = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        call = {**call.pop("kwargs", {}), **call}
        packed = [name for name in PACKED_KEYWORDS if call.get(name) is not None]
        if packed:
            raise NotImplementedError(
                f"δ-mem does not run with {packed[0]} (paged attention, packed rows): one row would hold several users' "
                "tokens. Use generate() or a padded batch"
            )
        batch, tokens = _size(call)
        block, cache = MemoryBlock.find(self.owner), call.get("past_key_values")
        valid = valid_tokens(call.get("attention_mask"), tokens, cache)
        start = self._start(block, cache, batch)
        linked = block is not None and (not block.detach or any(state.requires_grad for state in start.values()))
        return MemoryPass(
            start=start,
            valid=valid,
            write=block is None or block.write,
            segments=self._segments(block, valid, batch, tokens),
            batch=batch,
            tokens=tokens,
            linked=linked and torch.is_grad_enabled(),
            block=block,
            cache=cache,
        )

    def end(self, memory: MemoryPass, output: Any) -> None:
        """Hand the outcome of a pass to the KV cache and to the open block."""
        cache = getattr(output, "past_key_values", None)
        cache = memory.cache if cache is None else cache
        if hasattr(cache, "layers"):
            carried = MemoryCacheLayer.find(cache)
            if carried is None:
                carried = MemoryCacheLayer(self.owner, self.adapter)
                cache.layers.append(carried)
            carried.record(memory)
        if memory.block is not None and memory.block.write:
            self._store(memory, cache)

    def _start(self, block: MemoryBlock | None, cache: Any, batch: int) -> States:
        """The states a pass starts from: those in the cache if it was filled under this block, else the block's."""
        carried = MemoryCacheLayer.find(cache)
        if carried is not None and carried.states:
            if carried.owner() is not self.owner or carried.adapter != self.adapter:
                raise ValueError(
                    f"past_key_values carries the memory of the adapter {carried.adapter!r}, but {self.adapter!r} is active "
                    "now; use a fresh cache"
                )
            if block is None or (carried.block is not None and carried.block() is block):
                return _for_batch(carried.states, batch, 1, "past_key_values")
        if block is None:
            return {}
        generation = _generation.get()
        if generation is None:
            return _for_batch(block.state.tensors, batch, 1, "the memory")
        states = generation.start if cache is None else block.state.tensors
        return _for_batch(states, batch, generation.branches, "the memory")

    def _segments(self, block: MemoryBlock | None, valid: Tensor | None, batch: int, tokens: int) -> Segments | None:
        if block is None or not block.write or self.segments_of is None:
            return None
        ids = block.segment_ids
        if ids is None:
            raise ValueError(
                f"this adapter writes one {self.segments_of} at a time and cannot tell them apart by itself: give "
                "model.memory(state, segment_ids=...), or write=False to read only"
            )
        if tuple(ids.shape) != (batch, tokens):
            raise ValueError(
                f"segment_ids have the shape {tuple(ids.shape)}, but the pass has {batch} rows of {tokens} new tokens"
            )
        return Segments.of(ids if valid is None else ids.to(valid.device), valid)

    def _store(self, memory: MemoryPass, cache: Any) -> None:
        """Write a pass's outcome to the block's state; of a generation in branches, that of the prompt alone."""
        block: MemoryBlock = memory.block
        if memory.write_gates:
            block.write_gates.append(torch.stack([gate.cpu() for gate in memory.write_gates.values()]).mean())
        branches = memory.batch // len(block.state)
        generation = _generation.get()
        if branches > 1 and generation is not None:
            seen = memory.tokens if cache is None else cache.get_seq_length()
            if seen > generation.prompt_tokens:
                return
        block.state.tensors = {name: state[::branches] for name, state in memory.end.items()}


def _size(call: dict[str, Any]) -> tuple[int, int]:
    """Rows and new tokens of a call."""
    given = call.get("input_ids")
    if given is None:
        given = call.get("inputs_embeds")
    if given is None:
        raise ValueError("a model with a memory needs input_ids or inputs_embeds, got neither")
    return given.shape[0], given.shape[1]


def _for_batch(states: States, batch: int, branches: int, source: str) -> States:
    """The states for a batch, each row repeated for its branches.

    Raises:
        ValueError: the number of rows does not fit.
    """
    rows = next(iter(states.values())).shape[0]
    if rows == batch:
        return states
    if rows * branches != batch:
        raise ValueError(
            f"{source} holds {rows} rows, but the pass has {batch}; give every row its memory: model.new_memory({batch}), or "
            "DeltaMemState.stack([...])"
        )
    return {name: state.repeat_interleave(branches, dim=0) for name, state in states.items()}

"""Carries the memory through one forward pass of the whole model: where it starts, and where its outcome goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from deltamem.forward.checkpointing import avoid_reentrant, carry_into_recomputation
from deltamem.forward.confirmation import confirmed
from deltamem.forward.cuda_graphs import outside_graphs
from deltamem.forward.decode import DecodeStep, one_token_of, way_for
from deltamem.forward.kv_cache import MemoryCacheLayer, cache_in
from deltamem.forward.memory_pass import MemoryPass
from deltamem.forward.padding import non_padding_mask
from deltamem.forward.scope import MemoryScope
from deltamem.forward.sharding import after_output, is_sharded
from deltamem.forward.unsupported import check_call, check_compiling, check_learns, check_positions
from deltamem.memory.segments import Segments
from deltamem.memory.snapshot import Snapshot


@dataclass(frozen=True)
class Carrier:
    """Begins and ends the passes of one adapter.

    Args:
        owner: the tuner.
        adapter: name of the active adapter.
        segments_of: what one write is ("message", "sentence"), None if every token writes.
        keywords: whether the pass travels among the keywords of the model's modules, or beside them.
    """

    owner: Any
    adapter: str
    segments_of: str | None
    keywords: bool

    def begin(self, model: nn.Module, call: Mapping[str, Any]) -> MemoryPass:
        """Make the pass for a call of the model.

        Args:
            model: the model.
            call: its arguments by name.

        Raises:
            ValueError: rows, segment ids or a cache that do not fit the memory; training in which nothing is learnt.
            NotImplementedError: rows that are not one user's text each.
            RuntimeError: another thread's pass runs in the same memory block.
        """
        check_call(model, call)
        check_compiling(model, self.keywords)
        block = MemoryScope.find(self.owner)
        if block is None:
            return self._make(model, call, None)
        block.reached = True
        if torch.compiler.is_compiling():  # a graph asks which block is the caller's when it runs
            return self._make(model, call, block)
        block.claim()  # until `finish`
        try:
            return self._make(model, call, block)
        except BaseException:
            block.release()
            raise

    def finish(self, memory: MemoryPass) -> None:
        """Let other threads into the block again: the pass is over, well or not."""
        if memory.block is not None and not torch.compiler.is_compiling():
            memory.block.release()

    def _make(self, model: nn.Module, call: Mapping[str, Any], block: MemoryScope | None) -> MemoryPass:
        new, cache = new_tokens(call), cache_in(call)
        batch, tokens = new.shape[:2]
        valid = _unless_all(non_padding_mask(call.get("attention_mask"), tokens, cache))
        check_positions(call.get("position_ids"), valid)
        start = self._start(block, cache, batch, new.device)
        if block is None and self.segments_of is not None and not start.states:
            check_learns(model, self.segments_of, self.owner.prefix)
        if block is not None and torch.compiler.is_compiling():
            start = confirmed(start, block)
        linked = torch.is_grad_enabled() and (
            (block is not None and not block.detach) or any(state.requires_grad for state in start.states.values())
        )
        if not self.keywords and torch.is_grad_enabled():
            carry_into_recomputation(model)
        elif linked:
            avoid_reentrant(model)
        read, write = block is None or block.read, block is None or block.write
        segments = self._segments(block, valid, start, batch, tokens)
        return MemoryPass(
            start=start,
            valid=valid,
            write=write,
            segments=segments,
            batch=batch,
            tokens=tokens,
            linked=linked,
            block=block,
            cache=cache,
            carrier=self,
            one_token=self._one_token(new, start, valid, write) if read and _is_one_token(new, segments) else None,
            read=read,
        )

    def end(self, memory: MemoryPass, outcome: Snapshot, output: Any) -> None:
        """Hand the outcome of a pass to the KV cache and to the open block."""
        memory.over = True
        if memory.linked and is_sharded(self.owner.model):
            outcome = after_output(outcome, output)
        if torch.compiler.is_compiling():
            outcome = outside_graphs(outcome)
        cache = cache_in(getattr(output, "__dict__", {}))  # a tuple has none
        cache = memory.cache if cache is None else cache
        if hasattr(cache, "layers"):
            carried = MemoryCacheLayer.find(cache)
            if carried is None:
                carried = MemoryCacheLayer.append_to(cache, self.owner, self.adapter)
            carried.record(memory, outcome)
        if memory.block is not None and memory.block.write:
            self._store(memory, outcome, cache)

    def _start(self, block: MemoryScope | None, cache: Any, batch: int, device: torch.device) -> Snapshot:
        """The memory a pass starts from: that in the cache if it was filled under this block, else the block's."""
        carried = MemoryCacheLayer.find(cache)
        if carried is not None and carried.snapshot is not None:
            if not carried.belongs_to(self.owner, self.adapter):
                raise ValueError(
                    f"the KV cache carries the memory of the adapter {carried.adapter!r}, but {self.adapter!r} is active "
                    "now; use a fresh cache"
                )
            if block is None or (carried.block is not None and carried.block() is block):
                return _for_batch(carried.snapshot, batch, 1, "the KV cache")
        if block is None:
            return Snapshot.empty(batch, device)
        block.check_adapter()
        if block.generation is None:
            return _for_batch(block.state.snapshot, batch, 1, "the memory")
        # Without a KV cache, or with one that is made anew for every step, each step reads the text from its beginning.
        snapshot = block.generation.start if carried is None else block.state.snapshot
        return _for_batch(snapshot, batch, block.generation.beams_per_row, "the memory")

    def _segments(
        self, block: MemoryScope | None, valid: Tensor | None, start: Snapshot, batch: int, tokens: int
    ) -> Segments | None:
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
        ids = ids if valid is None else ids.to(valid.device)
        return Segments.of(ids, valid, start.open_segment, block.keep_open)

    def _one_token(self, new: Tensor, start: Snapshot, valid: Tensor | None, write: bool) -> DecodeStep | None:
        """What the layers do with the only new token of each row."""
        way, writes = way_for(new, valid), write and self.segments_of is None
        if way is None:
            return None
        return one_token_of(way, self.owner.decode_weights(new.device, start), start, valid, writes)

    def _store(self, memory: MemoryPass, outcome: Snapshot, cache: Any) -> None:
        """Write a pass's outcome to the block's state; of a generation in beams_per_row, that of the prompt alone."""
        block: MemoryScope = memory.block
        if memory.write_gates:
            block.write_gates.append(torch.stack([gate.cpu() for gate in memory.write_gates.values()]).mean())
        if not memory.read:
            block.token_writes = memory.token_writes
        beams_per_row = memory.batch // len(block.state)
        if beams_per_row > 1 and block.generation is not None:
            seen = memory.tokens if cache is None else cache.get_seq_length()
            if seen > block.generation.prompt_tokens:
                return
        block.state.snapshot = outcome if beams_per_row == 1 else outcome.map(lambda tensor: tensor[::beams_per_row])


def new_tokens(call: Mapping[str, Any]) -> Tensor:
    """The new tokens of a call: `[batch, tokens]`, or their embeddings."""
    for name in ("input_ids", "inputs_embeds"):
        if call.get(name) is not None:
            return cast(Tensor, call[name])
    raise ValueError("a model with a memory needs input_ids or inputs_embeds, got neither")


def _is_one_token(new: Tensor, segments: Segments | None) -> bool:
    """Whether a pass is one token of each row, and nothing else is to be thought of."""
    return new.shape[1] == 1 and segments is None and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _unless_all(valid: Tensor | None) -> Tensor | None:
    """None where every token is real, which saves every layer from looking; not where it would cost to ask."""
    if valid is None or valid.device.type != "cpu" or torch.compiler.is_compiling():
        return valid
    every = valid if valid.numel() == 1 else valid.all()  # an operation, where a token needs none
    return None if bool(every) else valid


def _for_batch(snapshot: Snapshot, batch: int, beams_per_row: int, source: str) -> Snapshot:
    """The memory for a batch, each row repeated for its beams_per_row.

    Raises:
        ValueError: the number of rows does not fit.
    """
    if snapshot.rows == batch:
        return snapshot
    if snapshot.rows * beams_per_row != batch:
        raise ValueError(
            f"{source} holds {snapshot.rows} rows, but the pass has {batch}; give every row its memory: "
            f"model.new_memory({batch}), or DeltaMemState.stack([...])"
        )
    return snapshot.map(lambda tensor: tensor.repeat_interleave(beams_per_row, dim=0))

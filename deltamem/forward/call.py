"""The beginning and the end of a model's forward pass: where its memory comes from, and where the outcome goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from deltamem.forward.checkpointing import avoid_reentrant, carry_into_recomputation
from deltamem.forward.compile import confirmed, outside_graphs
from deltamem.forward.decode import decode_step_for
from deltamem.forward.kv_cache import MemoryCacheLayer, cache_in
from deltamem.forward.memory_pass import MemoryPass
from deltamem.forward.owner import PassOwner
from deltamem.forward.padding import non_padding_mask
from deltamem.forward.scope import MemoryScope
from deltamem.forward.sharding import after_output, is_sharded
from deltamem.forward.unsupported import check_call, check_compiling, check_learns, check_positions
from deltamem.memory.segments import Segments
from deltamem.memory.snapshot import Snapshot


def begin_pass(owner: PassOwner, model: nn.Module, call: Mapping[str, Any]) -> MemoryPass:
    """Make the pass for a call of the model.

    Args:
        owner: the tuner.
        model: the model.
        call: the arguments of the call by name.

    Raises:
        ValueError: the rows, the segment ids or the cache do not fit the memory, or training would not learn anything.
        NotImplementedError: a row holds the texts of more than one user.
        RuntimeError: another thread's pass runs in the same memory scope.
    """
    check_call(model, call)
    check_compiling(model, owner.hands_keywords_down)
    scope = MemoryScope.find(owner)
    if scope is None:
        return _make_pass(owner, model, call, None)
    scope.reached = True
    if torch.compiler.is_compiling():  # the graph checks at run time that the scope is the caller's
        return _make_pass(owner, model, call, scope)
    scope.claim()  # until `release_pass`
    try:
        return _make_pass(owner, model, call, scope)
    except BaseException:
        scope.release()
        raise


def end_pass(memory: MemoryPass, output: Any) -> None:
    """Hand the outcome of a pass to the KV cache and to the open scope."""
    owner: PassOwner = memory.owner
    outcome = memory.outcome()
    memory.over = True
    if memory.linked and is_sharded(owner.model):
        outcome = after_output(outcome, output)
    if torch.compiler.is_compiling():
        outcome = outside_graphs(outcome)
    cache = cache_in(getattr(output, "__dict__", {}))  # a tuple has no __dict__
    cache = memory.cache if cache is None else cache
    if hasattr(cache, "layers"):
        carried = MemoryCacheLayer.find(cache)
        if carried is None:
            carried = MemoryCacheLayer.append_to(cache, owner, memory.adapter)
        carried.record(memory, outcome)
    if memory.scope is not None and memory.scope.write:
        _store(memory, outcome, cache)


def release_pass(memory: MemoryPass) -> None:
    """Let other threads into the scope again, when the pass has ended or failed."""
    if memory.scope is not None and not torch.compiler.is_compiling():
        memory.scope.release()


def new_tokens(call: Mapping[str, Any]) -> Tensor:
    """The new tokens of a call, [batch, tokens], or their embeddings, [batch, tokens, width]."""
    for name in ("input_ids", "inputs_embeds"):
        if call.get(name) is not None:
            return cast(Tensor, call[name])
    raise ValueError("a model with a memory needs input_ids or inputs_embeds, got neither")


def _make_pass(owner: PassOwner, model: nn.Module, call: Mapping[str, Any], scope: MemoryScope | None) -> MemoryPass:
    new, cache = new_tokens(call), cache_in(call)
    batch, tokens = new.shape[:2]
    config = owner.active_peft_config
    valid = _unless_all(non_padding_mask(call.get("attention_mask"), tokens, cache))
    check_positions(call.get("position_ids"), valid)
    start = _start(owner, scope, cache, batch, new.device)
    if scope is None and config.writes_segments and not start.layers:
        check_learns(model, config.write, owner.prefix)
    if scope is not None and torch.compiler.is_compiling():
        start = confirmed(start, scope)
    linked = torch.is_grad_enabled() and (
        (scope is not None and not scope.detach) or any(part.requires_grad for part in start.parts.values())
    )
    if not owner.hands_keywords_down and torch.is_grad_enabled():
        carry_into_recomputation(model)
    elif linked:
        avoid_reentrant(model)
    options = {
        "owner": owner,
        "adapter": owner.active_adapters[0],
        "start": start,
        "valid": valid,
        "read": scope is None or scope.read,
        "write": scope is None or scope.write,
        "segments": _segments(config.write, scope, valid, start, batch, tokens) if config.writes_segments else None,
        "batch": batch,
        "tokens": tokens,
        "linked": linked,
        "scope": scope,
        "cache": cache,
    }
    return _decode_step(owner, new, options) or MemoryPass(**options)


def _decode_step(owner: PassOwner, new: Tensor, options: dict[str, Any]) -> MemoryPass | None:
    """The pass as a fused decode step; None if it is not one, or if there are no fused kernels for it."""
    if new.shape[1] != 1 or torch.is_grad_enabled() or torch.compiler.is_compiling() or not options["read"]:
        return None
    step = decode_step_for(new, options["valid"])
    if step is None or (owner.active_peft_config.writes_segments and options["write"]):
        return None
    weights = owner.decode_weights(new.device, options["start"])
    return step(weights, **options) if weights.layers else None


def _start(owner: PassOwner, scope: MemoryScope | None, cache: Any, batch: int, device: torch.device) -> Snapshot:
    """The memory from which a pass starts: the cache's if the cache was filled in this scope, otherwise the scope's."""
    carried = MemoryCacheLayer.find(cache)
    if carried is not None and carried.snapshot is not None:
        adapter = owner.active_adapters[0]
        if not carried.belongs_to(owner, adapter):
            raise ValueError(
                f"the KV cache carries the memory of the adapter {carried.adapter!r}, but {adapter!r} is active now; use a "
                "fresh cache"
            )
        if scope is None or (carried.scope is not None and carried.scope() is scope):
            return _for_batch(carried.snapshot, batch, 1, "the KV cache")
    if scope is None:
        return Snapshot.empty(batch, device)
    scope.check_adapter()
    if scope.generation is None:
        return _for_batch(scope.state.snapshot, batch, 1, "the memory")
    # Without a KV cache, or with a new one for every step, each step reads the text from its beginning.
    snapshot = scope.generation.start if carried is None else scope.state.snapshot
    return _for_batch(snapshot, batch, scope.generation.beams_per_row, "the memory")


def _segments(
    unit: str, scope: MemoryScope | None, valid: Tensor | None, start: Snapshot, batch: int, tokens: int
) -> Segments | None:
    """The segments that a pass writes, for an adapter that writes segments; None if the pass writes nothing."""
    if scope is None or not scope.write:
        return None
    ids = scope.segment_ids
    if ids is None:
        raise ValueError(
            f"this adapter writes one {unit} at a time, and cannot tell from the tokens where it begins: give "
            "model.memory(state, segment_ids=...), or write=False to read only"
        )
    if tuple(ids.shape) != (batch, tokens):
        raise ValueError(f"segment_ids have the shape {tuple(ids.shape)}, but the pass has {batch} rows of {tokens} new tokens")
    ids = ids if valid is None else ids.to(valid.device)
    return Segments.from_ids(ids, valid, start.open_segment, scope.keep_open)


def _store(memory: MemoryPass, outcome: Snapshot, cache: Any) -> None:
    """Write a pass's outcome to the scope's state. With several beams per row, only the prompt's outcome is written."""
    scope: MemoryScope = memory.scope
    if memory.write_gates:
        scope.write_gates.append(torch.stack([gate.cpu() for gate in memory.write_gates.values()]).mean())
    if not memory.read:
        scope.token_writes = memory.token_writes
    beams_per_row = memory.batch // len(scope.state)
    if beams_per_row == 1:
        scope.state.snapshot = outcome
        return
    if scope.generation is not None:
        seen = memory.tokens if cache is None else cache.get_seq_length()
        if seen > scope.generation.prompt_tokens:
            return
    firsts = torch.arange(0, memory.batch, beams_per_row, device="cpu")
    scope.state.snapshot = outcome.select(firsts)


def _unless_all(valid: Tensor | None) -> Tensor | None:
    """None if nothing is padded, so layers skip masking. Not checked on a GPU, where reading the mask would synchronise."""
    if valid is None or valid.device.type != "cpu" or torch.compiler.is_compiling():
        return valid
    every = valid if valid.numel() == 1 else valid.all()  # a decoded token saves one operation
    return None if bool(every) else valid


def _for_batch(snapshot: Snapshot, batch: int, beams_per_row: int, source: str) -> Snapshot:
    """The memory for a batch, each row repeated for its beams.

    Raises:
        ValueError: the number of rows does not fit the batch.
    """
    if snapshot.rows == batch:
        return snapshot
    if snapshot.rows * beams_per_row != batch:
        raise ValueError(
            f"{source} holds {snapshot.rows} rows, but the pass has {batch}; give every row its memory: "
            f"model.new_memory({batch}), or DeltaMemState.stack([...])"
        )
    return snapshot.repeat(beams_per_row)

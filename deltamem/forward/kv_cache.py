"""The memory of a generation as a layer of the KV cache, which follows every operation on the cache."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from deltamem.forward.memory_pass import MemoryPass, TokenWrites, advance
from deltamem.forward.owner import PassOwner
from deltamem.memory.snapshot import Snapshot
from deltamem.versions import CACHE_NAMES, CROPS_TO_LENGTH, LayerWithoutKeys

# How many written tokens can be taken back: more than assisted decoding drafts at once.
WINDOW = 64


@dataclass
class _Step:
    """A recorded pass, with what is needed to undo all or part of it.

    Args:
        tokens: number of tokens.
        start: the memory before the pass, with the batch rows of that time.
        scope: the scope in which the pass ran, if any.
        writes: the token writes by module; empty if the pass wrote none.
        valid: `[batch, tokens]`, False for padding; None if every token is real.
        changed: whether the pass changed the memory.
        unread: whether the pass ran without the memory, because the adapter was disabled.
        rows: the original row of each current row; None while they are the same.
    """

    tokens: int
    start: Snapshot
    scope: weakref.ref[Any] | None = None
    writes: Mapping[str, TokenWrites] = field(default_factory=dict)
    valid: Tensor | None = None
    changed: bool = False
    unread: bool = False
    rows: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        self.rows = rows if self.rows is None else self.rows[rows.to(self.rows.device)]

    def goes_on(self, before: _Step) -> bool:
        """Whether this pass and the one before it changed nothing, so that one record can hold both."""
        return not (self.changed or before.changed) and (self.scope, self.unread) == (before.scope, before.unread)

    def first(self, tokens: int) -> _Step:
        """The first tokens of the pass as a step."""
        writes = {name: writes.first(tokens, None) for name, writes in self.writes.items()}
        return replace(self, tokens=tokens, writes=writes, valid=None if self.valid is None else self.valid[:, :tokens])

    def memory_before(self) -> Snapshot:
        return self.start.select(self.rows)

    def memory_after(self, tokens: int) -> Snapshot:
        """The memory after the first tokens of the pass, recomputed from its writes."""
        before = self.memory_before()
        states = {name: self.writes[name].first(tokens, self.rows).onto(before.state(name)) for name in before.layers}
        valid = self.valid if self.valid is None or self.rows is None else self.valid[self.rows.to(self.valid.device)]
        return Snapshot.from_layers(states, advance(before.tokens, valid, tokens), before.open_segment)

    def as_value(self) -> _Step:
        """The same step without references to a model or a scope, for a pickle."""
        writes = {name: writes._replace(bias=writes.bias.detach().clone()) for name, writes in self.writes.items()}
        return replace(self, start=self.start.map(torch.clone), scope=None, writes=writes)


def cache_in(named: Mapping[str, Any]) -> Any:
    """The KV cache among the keyword arguments of a call or the entries of an output; None if there is none.

    An encoder-decoder cache holds two; the result is the one for self-attention.
    """
    cache = next((named[name] for name in CACHE_NAMES if named.get(name) is not None), None)
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


class MemoryCacheLayer(LayerWithoutKeys):
    """An extra layer of a KV cache that holds the memory instead of keys and values.

    It stands after the layers of the model, and follows the operations on the cache: reorder, repeat, select, crop, reset and
    copy. It belongs to one adapter and, if the pass ran in a `with model.memory(...)` scope, to that scope.
    """

    # What a cache asks of its layers.
    keys = values = None
    is_initialized = is_compileable = is_croppable = True
    supports_early_init = False
    # Neither of the two for which masks are made.
    is_sliding = None
    # transformers 5.12 and older ask every layer of a cache that is used again for its size.
    max_batch_size = 0
    max_cache_len = 0

    def __init__(self, owner: PassOwner, adapter: str) -> None:
        # A weak reference, because a copy of the cache must not copy the model. None in a cache that was pickled.
        self.owner: weakref.ref[PassOwner] | None = weakref.ref(owner)
        self.adapter = adapter
        # The fingerprint of the adapter that wrote the memory; set only in a cache that was pickled.
        self.fingerprint: str | None = None
        self.scope: weakref.ref[Any] | None = None
        self.snapshot: Snapshot | None = None
        self.steps: list[_Step] = []

    @classmethod
    def find(cls, cache: Any) -> MemoryCacheLayer | None:
        """The memory that a cache carries, if any."""
        layers = getattr(cache, "layers", ())  # the memory is near the end
        return next((layer for layer in reversed(layers) if isinstance(layer, cls)), None)

    @classmethod
    def append_to(cls, cache: Any, owner: PassOwner, adapter: str) -> MemoryCacheLayer:
        """Let a cache carry the memory of an adapter."""
        carried = cls(owner, adapter)
        cache.layers.append(carried)
        if not torch.compiler.is_compiling():
            cache.crop = partial(_crop, cache)
        return carried

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryCacheLayer:
        """A branch of the conversation. Tensors are never changed in place, so both branches can share them."""
        branch = type(self).__new__(type(self))  # without __getstate__, which is for pickles
        branch.__dict__.update(vars(self), steps=[*map(copy, self.steps)])
        return branch

    def __getstate__(self) -> dict[str, Any]:
        """The content of a pickle: the memory, with the adapter's fingerprint in place of the model."""
        owner = None if self.owner is None else self.owner()
        return {
            **vars(self),
            "owner": None,
            "scope": None,
            "fingerprint": self.fingerprint if owner is None else owner.fingerprint(),
            "snapshot": self.snapshot and self.snapshot.map(torch.clone),
            "steps": [step.as_value() for step in self.steps],
        }

    def belongs_to(self, owner: PassOwner, adapter: str) -> bool:
        """Whether an adapter can continue this memory. A memory from a pickle then belongs to that adapter."""
        if self.owner is None and self.fingerprint == owner.fingerprint():
            self.owner, self.adapter = weakref.ref(owner), adapter
        return self.owner is not None and self.owner() is owner and self.adapter == adapter

    def record(self, memory: MemoryPass, outcome: Snapshot) -> None:
        """Store the memory after a pass, and how to undo the pass."""
        self.snapshot, self.max_batch_size = outcome, outcome.rows
        self.scope = None if memory.scope is None else weakref.ref(memory.scope)
        start = memory.start
        if not start.layers:  # before the first pass: an empty memory of these layers
            nothing = {part: torch.zeros_like(tensor) for part, tensor in outcome.parts.items()}
            start = replace(start, layers=outcome.layers, parts=nothing)
        step = _Step(memory.tokens, start, self.scope, memory.token_writes, memory.valid, memory.write)
        if torch.compiler.is_compiling():  # a growing history would recompile at every step, so keep only the last pass
            self.steps = [step]
            return
        self._append(step)

    def record_unread(self, tokens: int) -> None:
        """Count the tokens of a pass without the memory, so that a crop takes back the right ones."""
        if self.snapshot is not None:
            self._append(_Step(tokens, self.snapshot, unread=True))

    def reset(self) -> None:
        """Empty the memory together with the cache."""
        self.snapshot, self.steps, self.scope = None, [], None

    def get_max_length(self) -> int:
        """There is no limit, which transformers calls -1."""
        return -1

    def offload(self) -> None:
        """Stay where the memory is: it is small, and needed at once."""

    def prefetch(self) -> None:
        """See `offload`."""

    def check_crop(self, tokens: int) -> None:
        """Refuse to take back the last tokens if the memory cannot follow. This changes nothing.

        Raises:
            RuntimeError: the window does not hold that many written tokens, some of the tokens were not written in the open
                scope, or only a part of a pass that wrote segments would be taken back.
        """
        remaining, scope = tokens, self._open_scope()
        for step in reversed(self.steps):
            if remaining <= 0:
                return
            if scope is not None and not step.unread and (step.scope is None or step.scope() is not scope):
                raise RuntimeError(
                    f"cannot take back {tokens} tokens in this memory scope: {remaining} of them were in the cache before, and "
                    "were written to another memory. Crop the cache before the scope opens"
                )
            if remaining < step.tokens and step.changed and not step.writes:
                raise RuntimeError(
                    f"cannot take back {remaining} of the {step.tokens} tokens of a pass that wrote segments: a segment is a "
                    "single write. Take back the whole pass"
                )
            remaining -= step.tokens
        if remaining > 0 and self.snapshot is not None:
            raise RuntimeError(
                f"cannot take back {tokens} tokens from a memory: it can undo only the last {WINDOW} written tokens. Start "
                "again from a memory saved before them"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens exactly, here and in the scope that wrote them.

        Args:
            tokens_to_remove: the number of tokens, negative as in transformers.

        Raises:
            RuntimeError: see `check_crop`.
        """
        remaining = abs(tokens_to_remove)
        self.check_crop(remaining)
        scope, snapshot = self._open_scope(), self.snapshot
        while remaining and self.steps:
            step = self.steps.pop()
            kept = max(step.tokens - remaining, 0)
            if not step.unread and (step.changed or not kept):
                snapshot = step.memory_after(kept) if kept else step.memory_before()
            if kept:
                self.steps.append(step.first(kept))
            remaining -= step.tokens - kept
        if scope is not None and scope.state.snapshot is self.snapshot:
            scope.state.snapshot = snapshot
        self.snapshot = snapshot

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let each row continue another row's memory, as beam search does with the keys and values."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.snapshot is not None:
            self._select(torch.arange(self.snapshot.rows, device="cpu").repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows, given by index or by a boolean mask."""
        self._select(indices.nonzero().squeeze(1) if indices.dtype == torch.bool else indices)

    def _select(self, rows: Tensor) -> None:
        if self.snapshot is not None:
            self.snapshot = self.snapshot.select(rows)
        for step in self.steps:
            step.select(rows)

    def _open_scope(self) -> Any:
        """The scope of the last pass if it is still open, None otherwise."""
        scope = None if self.scope is None else self.scope()
        return scope if scope is not None and scope.is_open else None

    def _append(self, step: _Step) -> None:
        if self.steps and step.goes_on(self.steps[-1]):
            self.steps[-1].tokens += step.tokens
        else:
            self.steps.append(step)
        self._forget_old_steps()

    def _forget_old_steps(self) -> None:
        written = 0
        for position in range(len(self.steps) - 1, -1, -1):
            if written >= WINDOW:
                del self.steps[: position + 1]
                return
            written += self.steps[position].tokens * self.steps[position].changed


def _crop(cache: Any, tokens_to_remove: int) -> None:
    """Crop a cache that carries a memory. If the memory cannot follow, this raises before any layer is cropped."""
    carried, tokens_to_remove = MemoryCacheLayer.find(cache), int(tokens_to_remove)  # transformers 5.16 gives a tensor
    if CROPS_TO_LENGTH and tokens_to_remove >= 0:
        tokens_to_remove = min(tokens_to_remove - cache.get_seq_length(), 0)
        if tokens_to_remove == 0:
            return
    if carried is not None and tokens_to_remove < 0:
        carried.check_crop(-tokens_to_remove)
    type(cache).crop(cache, tokens_to_remove)

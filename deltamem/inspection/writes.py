"""Records what a pass writes to a memory, as tensors: keys, values, gates, errors, and what is left of it later."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltamem.adapter.layer_weights import LayerWeights
from deltamem.forward.memory_pass import project
from deltamem.forward.running import pass_in
from deltamem.layer import DeltaMemLayer
from deltamem.memory.segments import Segments
from deltamem.rule import DeltaKind, delta_rule
from deltamem.rule.gates import Writes
from deltamem.rule.kind import STATE, empty_state


@dataclass(frozen=True)
class LayerWrites:
    """The writes of one attention layer in one pass, in sequence: each acts on the state that the previous one left.

    A write is a token, or a segment for adapters that write segments (SSW). Padding, or a segment that a row does not have, is
    a write that changes nothing. All tensors are float32, without a gradient.

    Args:
        start: the states before the pass, `[batch, states, r, r]`.
        k, v: the keys and values written, `[batch, states, writes, r]`.
        keep, erase, write: the gates of each row of a state, as `deltamem.rule.delta_rule` takes them; `write` is β.
        write_of_token: `[batch, tokens]`, the index of each token's write; -1 for tokens that are not written.
    """

    start: Tensor
    k: Tensor
    v: Tensor
    keep: Tensor
    erase: Tensor
    write: Tensor
    write_of_token: Tensor

    @property
    def gate(self) -> Tensor:
        """The mean of the write gate β over the rows of a state, 0 to 1, `[batch, states, writes]`."""
        return self.write.mean(-1)

    @property
    def states(self) -> Tensor:
        """The state before each write, and after the last: `[batch, states, writes + 1, r, r]`."""
        # A token reads the state before its own write, so reading with unit vectors yields the state's columns.
        states, r = self.start.shape[1], self.start.shape[-1]
        k, v, keep, erase, write = (repeat(part, "b n t r -> b (n column) t r", column=r) for part in self._gated)
        basis = torch.eye(r, dtype=k.dtype, device=k.device).repeat(states, 1)[None, :, None].expand_as(k)
        start = repeat(self.start, "b n row r -> b (n column) row r", column=r)
        columns, end = delta_rule(basis, k, v, keep, erase, write, start)
        before = rearrange(columns, "b (n column) t row -> b n t row column", n=states)
        after = rearrange(end, "b (n column) row r -> b n column row r", n=states)[:, :, :1]
        return torch.cat([before, after], dim=2)

    @property
    def change(self) -> Tensor:
        """The Frobenius norm of each write's change of its state, `[batch, states, writes]`."""
        return self.states.diff(dim=2).norm(dim=(-2, -1))

    @property
    def error(self) -> Tensor:
        """The delta rule's error, `write v - erase S k`: what is written minus what is erased, `[batch, states, writes, r]`."""
        found = delta_rule(self.k, *self._gated, self.start)[0]  # S k: every key as a query
        return self.write * self.v - self.erase * found

    @property
    def _gated(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.k, self.v, self.keep, self.erase, self.write


@torch.no_grad()
def writes_of(model: PeftModel, **inputs: Any) -> dict[str, LayerWrites]:
    """Run one pass of a model with a δ-mem adapter, and return its writes.

    Inside a `with model.memory(...)` block, the pass starts from the block's memory and writes to it; outside, it starts from
    an empty memory.

    Args:
        model: the model to run.
        inputs: inputs for the model's forward: `input_ids` and anything else it takes.

    Returns:
        The writes by attention module, under the names of `DeltaMemState.tensors`.

    Raises:
        ValueError: nothing is written: the block only reads, the adapter is switched off, or it writes segments and none are
            given.
    """
    layers = [module for module in model.modules() if isinstance(module, DeltaMemLayer) and module.is_active]
    written: dict[str, LayerWrites] = {}
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(_recorder(layer, written))
        model(**inputs)
    if not written:
        raise ValueError(
            "the pass wrote nothing; call writes_of in a block that writes (model.memory(state), for adapters that write "
            "segments with segment_ids), with a δ-mem adapter active"
        )
    return written


@torch.no_grad()
def left_of(passes: Sequence[LayerWrites]) -> list[Tensor]:
    """Decompose a layer's state into what is left of each pass's writes after later passes.

    The delta rule is linear in the state and in the values, so the state is the sum of these parts: later writes decay the
    earlier parts and erase them where their keys are similar.

    Args:
        passes: successive passes of one layer, each starting where the previous one ended.

    Returns:
        For each pass, the parts after it, `[parts, batch, states, r, r]`: first what is left of the state before the first
        pass, then what is left of each pass up to this one.
    """
    parts = passes[0].start[None]
    left = []
    for done in passes:
        parts = torch.cat([parts, torch.zeros_like(parts[:1])])  # this pass's part starts at zero
        values = done.v.new_zeros(len(parts), *done.v.shape)
        values[-1] = done.v
        k, keep, erase, write = (
            repeat(part, "b n t r -> (parts b) n t r", parts=len(parts)) for part in (done.k, done.keep, done.erase, done.write)
        )
        values, state = (rearrange(tensor, "parts b ... -> (parts b) ...") for tensor in (values, parts))
        end = delta_rule(k, k, values, keep, erase, write, state)[1]
        parts = rearrange(end, "(parts b) ... -> parts b ...", parts=len(parts))
        left.append(parts)
    return left


def _recorder(layer: DeltaMemLayer, written: dict[str, LayerWrites]) -> RemovableHandle:
    """Register a hook that records a layer's writes in a pass of this thread; another's may be another user's."""
    thread = threading.get_ident()

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        memory, weights = pass_in(kwargs), layer.active_weights
        if memory is None or weights is None or not memory.write or threading.get_ident() != thread:
            return
        kind = weights.kind
        if not isinstance(kind, DeltaKind):
            raise ValueError(f"writes are shown only for the delta rule, and this adapter has kind={weights.config.kind!r}")
        tokens = memory.token_writes.get(layer.name)
        if tokens is not None:
            gated = kind.writes(tokens.projected, tokens.bias, tokens.valid)
            index = torch.arange(memory.tokens, device=tokens.projected.device).expand(memory.batch, -1)
            index = index if tokens.valid is None else torch.where(tokens.valid, index, -1)
        elif memory.segments is not None:
            gated = _segment_writes(
                layer, weights, kind, memory.segments, layer.memory_input(layer.hidden_states(args, kwargs))
            )
            index = torch.where(memory.segments.index < memory.segments.count, memory.segments.index, -1)
        else:
            return
        start = memory.start.state(layer.name) or empty_state(kind, memory.batch, gated.k.device)
        written[layer.name] = LayerWrites(start[STATE], *gated, index)

    return layer.register_forward_hook(record, with_kwargs=True)


def _segment_writes(layer: DeltaMemLayer, weights: LayerWeights, kind: DeltaKind, segments: Segments, hidden: Tensor) -> Writes:
    """The writes of an adapter that writes segments: the segments' means, projected and gated as tokens are."""
    means = segments.means(segments.sums(hidden, layer.name))
    return kind.writes(project(means, weights.in_weight[kind.read_rows :]), weights.gate_bias, segments.present)

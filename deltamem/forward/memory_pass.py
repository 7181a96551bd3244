"""MemoryPass: the memory in one forward pass, handed down to every attention layer.

Shapes: L layers, B batch rows, T tokens of the pass, W width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.adapter.layer_weights import LayerWeights
from deltamem.forward.corrections import Correcting, Corrections
from deltamem.memory.segments import Segments
from deltamem.memory.snapshot import Snapshot, counted
from deltamem.rule import MemoryKind, Outcome
from deltamem.rule.kind import LayerState, empty_state


class TokenWrites(NamedTuple):
    """The writes of one layer, token by token; enough to replay them.

    Args:
        projected: the rows that write, for every token, [B, T, write_rows].
        bias: the bias of these rows, [bias_rows].
        valid: [B, T], False for padding; None if every token is real.
        kind: the update rule.
    """

    projected: Tensor
    bias: Tensor
    valid: Tensor | None
    kind: MemoryKind

    def first(self, tokens: int, rows: Tensor | None) -> TokenWrites:
        """The writes of the first tokens only, for the given batch rows."""

        def part(tensor: Tensor) -> Tensor:
            return (tensor if rows is None else tensor[rows.to(tensor.device)])[:, :tokens]

        return self._replace(projected=part(self.projected), valid=None if self.valid is None else part(self.valid))

    def after(self, rows: Tensor, tokens: Tensor, start: LayerState | None) -> LayerState:
        """The layer's state [reads, ...] after the first `tokens[i]` real tokens of batch row `rows[i]`.

        Args:
            rows, tokens: [reads].
            start: the common state before them, [1, ...]; an empty one if None.
        """
        rows, tokens = rows.to(self.projected.device), tokens.to(self.projected.device)
        real = torch.ones_like(self.projected[..., 0], dtype=torch.bool) if self.valid is None else self.valid  # [B, T]
        told = real[rows] & (real.cumsum(1)[rows] <= tokens[:, None])  # [reads, T]
        if start is not None:
            start = {part: tensor.expand(len(rows), *tensor.shape[1:]) for part, tensor in start.items()}
        return self._replace(projected=self.projected[rows], valid=told).onto(start)

    def onto(self, state: LayerState | None) -> LayerState:
        """The layer's state [B, ...] after these writes, from the state before them; from an empty one if None."""
        return self.kind.write(self.projected, self.bias, state, self.valid).state


class ReadingLayer(Protocol):
    """An attention layer as a pass sees it."""

    name: str

    @property
    def active_weights(self) -> LayerWeights | None:
        """The active adapter's weights in this layer; None if it has none here."""
        ...


class MemoryPass:
    """The memory in one forward pass: its value before, which tokens read and write it, and its value after the layers ran.

    `start` never changes, so a layer that is recomputed (activation checkpointing) gives the same result.

    This is not a dataclass: FSDP copies dataclasses among a layer's arguments, which would lose the results of the layer.

    Args:
        owner, adapter: the tuner, and the name of its active adapter.
        start: the memory before the pass.
        valid: [B, T], False for padding; None if every token is real.
        read: whether tokens read; if not, they only write.
        write: whether tokens write; if not, they only read.
        segments: the segments to write, for adapters that write segments (SSW).
        batch, tokens: B and T.
        linked: whether gradients flow between the memories of this pass and another.
        scope: the open `with model.memory(...)` scope, if any.
        cache: the KV cache of the call, if any.

    Attributes:
        end: each layer's state after the pass, filled in by the layers.
        sums: by layer, the sums of the hidden states of the segments that stay open, [B, W].
        write_gates: the mean write gate of each layer that wrote, a scalar with its gradient.
        over: whether the model has run; a layer that runs afterwards is recomputed for its gradients.
    """

    def __init__(
        self,
        *,
        owner: Any,
        adapter: str,
        start: Snapshot,
        valid: Tensor | None,
        read: bool,
        write: bool,
        segments: Segments | None,
        batch: int,
        tokens: int,
        linked: bool,
        scope: Any,
        cache: Any,
    ) -> None:
        self.owner = owner
        self.adapter = adapter
        self.start = start
        self.valid = valid
        self.read = read
        self.write = write
        self.segments = segments
        self.batch = batch
        self.tokens = tokens
        self.linked = linked
        self.scope = scope
        self.cache = cache
        self.end: dict[str, LayerState] = {}
        self.sums: dict[str, Tensor] = {}
        self._token_writes: dict[str, TokenWrites] = {}
        self.write_gates: dict[str, Tensor] = {}
        self.over = False

    @property
    def reached(self) -> Collection[str]:
        """The names of the layers that the pass has run through."""
        return self.end

    @property
    def token_writes(self) -> Mapping[str, TokenWrites]:
        """The writes of the layers, token by token, by the names of the layers."""
        return self._token_writes

    def valid_for_gradients(self, device: torch.device) -> Tensor | None:
        """`valid` if gradients are computed and there is padding; None otherwise.

        Padding must not reach any gradient: neither its values, nor gradients that come back from it. In cuDNN 9.19, a fully
        masked row of an attention has a NaN gradient if the length is a multiple of 64.
        """
        return self.valid.to(device) if self.valid is not None and torch.is_grad_enabled() else None

    def read_and_write(self, layer: ReadingLayer, hidden: Tensor) -> Correcting | None:
        """Read a layer's memory for every token and, if the pass writes, write it.

        Args:
            layer: the attention layer.
            hidden: its input after the norm, [B, T, W].

        Returns:
            The corrections; None for a layer without the adapter, and in a pass that does not read.

        Raises:
            NotImplementedError: the layer runs more than once, or reentrant checkpointing would cut gradients.
        """
        weights = layer.active_weights
        if weights is None:
            return None
        self._check(layer.name)
        with _without_autocast(hidden.device.type):
            reads = self._passed(layer.name, weights, hidden)
        if reads is None:
            return None
        in_place = not (torch.compiler.is_compiling() or torch.is_grad_enabled())
        return Corrections(reads, weights, in_place, self.valid_for_gradients(hidden.device))

    def outcome(self) -> Snapshot:
        """The memory after the pass."""
        ends = {name: self.end[name] for name in self.start.layers or self.end}
        return self._counted(Snapshot.from_layers(ends, self.start.tokens))

    def _counted(self, after: Snapshot) -> Snapshot:
        """The memory after the pass, from the states after it: add the token counts and the open segment."""
        start = self.start
        if not self.write:
            return replace(after, tokens=start.tokens, open_segment=start.open_segment)
        if self.segments is None:
            return replace(after, tokens=advance(start.tokens, self.valid, self.tokens))
        tokens = counted(start.tokens, self.segments.tokens.to(start.tokens.device))
        return replace(after, tokens=tokens, open_segment=self.segments.left_open(self.sums))

    def _check(self, layer: str) -> None:
        if self.linked and not torch.is_grad_enabled():
            raise NotImplementedError(
                "reentrant activation checkpointing cuts the gradients between the passes of a memory; call "
                "torch.utils.checkpoint with use_reentrant=False"
            )
        if layer in self.reached and not self.over:
            raise NotImplementedError(
                f"{layer} runs more than once in one pass, and a memory reads and writes every token once; δ-mem does not "
                "fit such a model"
            )

    def _passed(self, layer: str, weights: LayerWeights, hidden: Tensor) -> Tensor | None:
        """Pass the tokens through a layer's memory; returns the reads [B, T, read_width], or None if the pass only writes."""
        kind, weight = weights.kind, weights.in_weight
        valid = None if self.valid is None else self.valid.to(hidden.device)
        start = self._state_before(layer, kind, hidden.device)
        if self.write and not weights.config.writes_segments:
            run, rows = (kind.read_and_write, weight) if self.read else (kind.write, weight[kind.read_rows :])
            projected, bias = project(hidden, rows), weights.gate_bias  # [B, T, rows]
            passed = run(projected, bias, start, valid)  # reads [B, T, read_width]
            self._store(layer, passed, valid, hidden.shape[1])
            self._keep(layer, TokenWrites(projected[..., -kind.write_rows :], bias, valid, kind))
            return passed.reads if self.read else None
        self._leave(layer, start)
        reads = kind.read(project(hidden, weight[: kind.read_rows]), start, valid) if self.read else None
        if self.write and self.segments is not None and self.segments.count:
            self._write_segments(layer, weights, self.segments, hidden, start)
        return reads

    def _write_segments(self, layer: str, weights: LayerWeights, segments: Segments, hidden: Tensor, start: LayerState) -> None:
        kind, present = weights.kind, segments.present.to(hidden.device)  # [B, segments]
        sums = segments.sums(hidden, layer)  # [B, segments + 1, W]
        projected = project(segments.means(sums), weights.in_weight[kind.read_rows :])  # [B, segments, write_rows]
        self._store(layer, kind.write(projected, weights.gate_bias, start, present), present, segments.count)
        left_open = segments.open_sums(sums)  # [B, W]
        if left_open is not None:
            self.sums[layer] = left_open

    def _state_before(self, layer: str, kind: MemoryKind, device: torch.device) -> LayerState:
        state = self.start.state(layer)
        if state is None:
            return empty_state(kind, self.batch, device)
        return {part: tensor.to(device) for part, tensor in state.items()}

    def _store(self, layer: str, passed: Outcome, valid: Tensor | None, tokens: int) -> None:
        """Record what a layer wrote; `tokens` is the number of tokens or segments."""
        self._leave(layer, passed.state)
        if torch.is_grad_enabled():
            self.write_gates[layer] = passed.mean_write_gate(valid, tokens)

    def _leave(self, layer: str, state: LayerState) -> None:
        """Record the state of a layer after the pass."""
        self.end[layer] = state

    def _keep(self, layer: str, writes: TokenWrites) -> None:
        """Record the writes of a layer, token by token."""
        self._token_writes[layer] = writes


def advance(counter: Tensor, valid: Tensor | None, tokens: int) -> Tensor:
    """Add the number of real tokens among the first `tokens` of a pass to a counter, [B]."""
    return counted(counter, tokens if valid is None else valid[:, :tokens].sum(1).to(counter.device))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Switch autocast off, which would round the gates and states; these are float32."""
    return torch.autocast(device, enabled=False) if device != "meta" and torch.is_autocast_enabled(device) else nullcontext()


def project(hidden: Tensor, weight: Tensor) -> Tensor:
    """`hidden weight^T` in the weight's precision, then float32, so that small differences between gates are kept."""
    hidden = hidden if hidden.dtype == weight.dtype else hidden.to(weight.dtype)  # [B, T, W]
    projected = F.linear(hidden, weight)  # [B, T, rows]
    return projected if projected.dtype == torch.float32 else projected.float()

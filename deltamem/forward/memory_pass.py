"""MemoryPass: one forward pass's view of the memory, handed down to every attention layer."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltamem.memory.segments import Segments
from deltamem.memory.snapshot import Snapshot, counted
from deltamem.rule import Gating, gated_write


class TokenWrites(NamedTuple):
    """What one layer wrote, token by token: enough to write it again.

    Args:
        projected: the rows k | v | β | λ of every token, `[batch, tokens, gating.write_rows]`.
        gate_bias: added to the rows β | λ.
        valid: `[batch, tokens]`, False for padding; None if every token is real.
        gating: what the rows mean.
    """

    projected: Tensor
    gate_bias: Tensor
    valid: Tensor | None
    gating: Gating

    def first(self, tokens: int, rows: Tensor | None) -> TokenWrites:
        """The writes of the first tokens only, for the given batch rows."""

        def part(tensor: Tensor) -> Tensor:
            return (tensor if rows is None else tensor[rows.to(tensor.device)])[:, :tokens]

        return self._replace(projected=part(self.projected), valid=None if self.valid is None else part(self.valid))

    def after(self, rows: Tensor, tokens: Tensor, start: Tensor | None) -> Tensor:
        """The states `[reads, num_states, r, r]` after the first `tokens[i]` real tokens of batch row `rows[i]`.

        Args:
            rows, tokens: `[reads]`.
            start: the states before them, one for all, `[1, num_states, r, r]`; zero if None.
        """
        rows, tokens = rows.to(self.projected.device), tokens.to(self.projected.device)
        real = torch.ones_like(self.projected[..., 0], dtype=torch.bool) if self.valid is None else self.valid
        told = real[rows] & (real.cumsum(1)[rows] <= tokens[:, None])  # [reads, tokens]
        start = None if start is None else start.expand(len(rows), -1, -1, -1)
        return self._replace(projected=self.projected[rows], valid=told).onto(start)

    def onto(self, state: Tensor | None) -> Tensor:
        """The states `[batch, num_states, r, r]` after these writes; `state` before them, zero if None."""
        return gated_write(self.projected, self.gate_bias, state, self.valid, self.gating).state


class MemoryPass:
    """The memory in one forward pass: where it starts, what counts, and, once the layers ran, where it ended.

    `start` is never changed, so a layer that is computed again (activation checkpointing) computes the same again.

    No dataclass: FSDP copies those that it meets among a layer's arguments, and what the layer fills in would be lost.

    Args:
        start: the memory before the pass.
        valid: `[batch, tokens]`, False for padding; None if every token is real.
        write: whether tokens write, or the memory is only read.
        read: whether tokens read, or the memory is only written.
        segments: what is written where an adapter writes segments (SSW).
        batch, tokens: size of the pass.
        linked: whether gradients pass from this pass's memory to another pass's.
        block: the open `with model.memory(...)` block, if any.
        cache: the KV cache of the call, if any.
        carrier: who takes the outcome over.
        one_token: what the layers do where the pass is one token (`DecodeStep`); None if it is taken like any other.

    Attributes:
        end: the states after the pass by module, filled in by the layers (for those that took one token, by `one_token`).
        sums: what the layers have seen of the segments that stay open, by module.
        token_writes: what was written, filled in by the layers that write tokens, in the same way.
        write_gates: the mean write gate β of each layer that wrote, a scalar with its gradient.
        over: whether the model has run; a layer that runs after that is computed again, for its gradients.
    """

    def __init__(
        self,
        start: Snapshot,
        valid: Tensor | None,
        write: bool,
        segments: Segments | None,
        batch: int,
        tokens: int,
        linked: bool = False,
        block: Any = None,
        cache: Any = None,
        carrier: Any = None,
        one_token: Any = None,
        read: bool = True,
    ) -> None:
        self.start = start
        self.valid = valid
        self.write = write
        self.read = read
        self.segments = segments
        self.batch = batch
        self.tokens = tokens
        self.linked = linked
        self.block = block
        self.cache = cache
        self.carrier = carrier
        self.one_token = one_token
        self._own_end: dict[str, Tensor] = {}
        self.end: MutableMapping[str, Tensor] = self._own_end if one_token is None else ChainMap(self._own_end, one_token.end)
        self.sums: dict[str, Tensor] = {}
        self.token_writes: MutableMapping[str, TokenWrites] = {} if one_token is None else ChainMap({}, one_token.token_writes)
        self.write_gates: dict[str, Tensor] = {}
        self.over = False

    def valid_for_gradients(self, device: torch.device) -> Tensor | None:
        """`valid`, where gradients are computed and there is padding; None otherwise.

        Nothing from the padding may reach a gradient: neither what stands there, nor what comes back from there. A row of an
        attention that may see nothing has the gradient NaN in cuDNN's kernel, where the length is a multiple of 64 (9.19).
        """
        return self.valid.to(device) if self.valid is not None and torch.is_grad_enabled() else None

    def outcome(self) -> Snapshot:
        """The memory after the pass."""
        # If all layers took one token, their states are in one tensor, from which the next token can start.
        end = self.end if self.one_token is None or self._own_end else self.one_token.states_after()
        if not self.write:
            return Snapshot(end, self.start.tokens, self.start.open_segment)
        if self.segments is None:
            return Snapshot(end, advance(self.start.tokens, self.valid, self.tokens))
        tokens = counted(self.start.tokens, self.segments.tokens.to(self.start.tokens.device))
        return Snapshot(end, tokens, self.segments.left_open(self.sums))


def advance(counter: Tensor, valid: Tensor | None, tokens: int) -> Tensor:
    """Count the first tokens of a pass, those of them that are real: `[batch]` to `[batch]`."""
    return counted(counter, tokens if valid is None else valid[:, :tokens].sum(1).to(counter.device))

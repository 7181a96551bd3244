"""Other structures of a memory, as kinds, to compare with the delta rule: `python kinds.py study structure.yaml`.

- `read_gate`: the delta rule, and every token opens or closes the reads of each state.
- `normalised`: the delta rule, and reads are divided by what the same writes of the value 1 would have read.
- `gated_cell`: the cell of an LSTM as a matrix, with an input, a forget and an output gate, in place of the delta rule.

Shapes: B batch rows, N states, T tokens, r width of a state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from deltamem.rule import DeltaKind, Outcome, delta_rule, read, register_memory_kind
from deltamem.rule.gates import EPSILON, queries, writes
from deltamem.rule.kind import STATE, LayerState, empty_state
from deltamem_cli import app

SMALLEST_NORM = 0.1  # smaller normalisers do not divide
FORGET_BIAS = 4.0  # a new cell halves in 38 tokens


@dataclass(frozen=True)
class ReadGate(DeltaKind):
    """`2 sigmoid(g x) S q`, one gate `g x` per token and state; 1 in a new adapter."""

    @property
    def read_rows(self) -> int:
        return self.num_states + self.query_rows

    @property
    def row_groups(self) -> Mapping[str, int]:
        return {"read_gate": self.num_states, **super().row_groups}

    def read_and_write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        gates, rest = projected.tensor_split([self.num_states], dim=-1)
        outcome = super().read_and_write(rest, bias, state, valid)
        return outcome._replace(reads=self._gated(outcome.reads, gates, valid))

    def read(self, projected: Tensor, state: LayerState, valid: Tensor | None) -> Tensor:
        gates, rest = projected.tensor_split([self.num_states], dim=-1)
        return self._gated(super().read(rest, state, valid), gates, valid)

    @torch.no_grad()
    def initialise(self, weight: Tensor, bias: Tensor) -> None:
        weight[: self.num_states].zero_()
        super().initialise(weight[self.num_states :], bias)

    def _gated(self, reads: Tensor, gates: Tensor, valid: Tensor | None) -> Tensor:
        opened = 2 * gates.float().sigmoid().repeat_interleave(self.r, dim=-1)  # [B, T, N * r]
        return reads * opened if valid is None else torch.where(valid[..., None], reads * opened, 0.0)


@dataclass(frozen=True)
class Normalised(DeltaKind):
    """`S q / max(|Z q|, 0.1)`, row by row, where `Z` follows the updates of `S` with the value 1 in place of `v`."""

    @property
    def state_parts(self) -> Mapping[str, tuple[int, ...]]:
        return {STATE: (2 * self.num_states, self.r, self.r)}  # the states S, then their normalisers Z

    def read_and_write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        q, rows = projected.float().split([self.query_rows, self.write_rows], dim=-1)
        return self._run(queries(q, self, valid), rows, bias, state, valid)

    def write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        rows = projected.float()
        nothing = queries(torch.zeros_like(rows[..., : self.query_rows]), self, valid)
        outcome = self._run(nothing, rows, bias, state, valid)
        return outcome._replace(reads=rows[..., :0])

    def read(self, projected: Tensor, state: LayerState, valid: Tensor | None) -> Tensor:
        return self._divided(read(_twice(queries(projected.float(), self, valid)), state[STATE]))

    def _run(self, q: Tensor, rows: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        (k, v, *gates), opened = writes(rows, bias.float(), self, valid)
        values = torch.cat([v, torch.ones_like(v)], dim=1)  # [B, 2N, T, r]
        keep, erase, write = map(_twice, gates)
        seen, after = delta_rule(_twice(q), _twice(k), values, keep, erase, write, None if state is None else state[STATE])
        return Outcome(self._divided(seen), {STATE: after}, opened)

    def _divided(self, seen: Tensor) -> Tensor:
        reads, norms = seen.chunk(2, dim=1)
        return _joined(reads / norms.abs().clamp(min=SMALLEST_NORM))


@dataclass(frozen=True)
class GatedCell:
    """The cell of LSTMem, as far as it is described in public: matrices for the cell and for what it shows, and three gates.

    With `i`, `f` and `o` one gate per row, and unit keys and queries as in the delta rule::

        read = H q        C <- f C + i tanh(v) k^T        H <- o tanh(C)

    Its links between layers, and what feeds its gates besides the token, are not described; there are none here.
    """

    r: int
    num_states: int
    input_bias: float
    tie_queries: bool

    @classmethod
    def from_config(cls, config: Any) -> GatedCell:
        return cls(config.r, config.num_states, config.beta_bias, config.tie_query_init)

    @property
    def state_parts(self) -> Mapping[str, tuple[int, ...]]:
        shape = (self.num_states, self.r, self.r)
        return {"cell": shape, "hidden": shape}

    read_rows = read_width = property(lambda self: self.num_states * self.r)
    write_rows = property(lambda self: 5 * self.read_rows)
    bias_rows = property(lambda self: 3 * self.read_rows)
    row_groups = property(lambda self: dict.fromkeys(("q", "k", "v", "input", "forget", "output"), self.read_rows))

    def read_and_write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        q, rows = projected.float().split([self.read_rows, self.write_rows], dim=-1)
        shown, outcome = self._run(rows, bias, state, valid)
        return outcome._replace(reads=_joined(torch.einsum("bntij,bntj->bnti", shown, self._unit(q, valid))))

    def write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        return self._run(projected.float(), bias, state, valid)[1]

    def read(self, projected: Tensor, state: LayerState, valid: Tensor | None) -> Tensor:
        return _joined(self._unit(projected.float(), valid) @ state["hidden"].transpose(-1, -2))

    @torch.no_grad()
    def initialise(self, weight: Tensor, bias: Tensor) -> None:
        q, k, v, gates = weight.tensor_split([self.read_rows * part for part in (1, 2, 3)])
        for part in (q, k, v):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        if self.tie_queries:
            q.copy_(k)
        gates.zero_()
        for part, value in zip(bias.chunk(3), (self.input_bias, FORGET_BIAS, 0.0), strict=True):
            part.fill_(value)

    def check_fits(self, width: int) -> None:
        if self.r > width:
            raise ValueError(f"r={self.r} is not accepted for hidden states of width {width}; give r up to that width")

    def gates_at_rest(self, bias: Tensor) -> Mapping[str, Tensor]:
        opened = bias.sigmoid().chunk(3)
        return {"write": opened[0], "keep": opened[1]}

    def mean_gates(self, projected: Tensor, bias: Tensor) -> Mapping[str, Tensor]:
        opened = (projected[..., 2 * self.read_rows :] + bias).sigmoid().chunk(3, dim=-1)
        return {"write": opened[0].mean(-1), "keep": opened[1].mean(-1)}

    def describe(self) -> str:
        return "one gated cell" if self.num_states == 1 else f"{self.num_states} gated cells"

    def _run(self, rows: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> tuple[Tensor, Outcome]:
        """What each token can read, the hidden matrices before it `[B, N, T, r, r]`, and the outcome without reads."""
        keys, values, logits = _real(rows, valid).tensor_split([self.read_rows, 2 * self.read_rows], dim=-1)
        opened = (logits + bias.float()).sigmoid()
        i, f, o = rearrange(opened, "b t (gate n r) -> gate b n t r 1", gate=3, n=self.num_states)
        if valid is not None:
            real = valid[:, None, :, None, None]
            i, f = torch.where(real, i, 0.0), torch.where(real, f, 1.0)
        v, k = rearrange(values.tanh(), "b t (n r) -> b n t r 1", n=self.num_states), self._unit(keys, valid)
        added = i * v * k[..., None, :]  # [B, N, T, r, r]
        before = empty_state(self, len(rows), rows.device) if state is None else state
        cell, hidden, shown = before["cell"], before["hidden"], []
        for token in range(rows.shape[1]):
            shown.append(hidden)
            cell = f[:, :, token] * cell + added[:, :, token]
            new = o[:, :, token] * cell.tanh()
            hidden = new if valid is None else torch.where(valid[:, token, None, None, None], new, hidden)
        seen = torch.stack(shown, dim=2) if shown else added
        return seen, Outcome(rows[..., :0], {"cell": cell, "hidden": hidden}, i.mean((3, 4)).sum(2))

    def _unit(self, rows: Tensor, valid: Tensor | None) -> Tensor:
        rows = rearrange(_real(rows, valid), "b t (n r) -> b n t r", n=self.num_states)
        return F.normalize(rows.tanh(), dim=-1, eps=EPSILON)


def _real(rows: Tensor, valid: Tensor | None) -> Tensor:
    return rows if valid is None else torch.where(valid[..., None], rows, 0.0)


def _twice(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor], dim=1)


def _joined(reads: Tensor) -> Tensor:
    return rearrange(reads, "b n t r -> b t (n r)")


register_memory_kind("read_gate", ReadGate.from_config)
register_memory_kind("normalised", Normalised.from_config)
register_memory_kind("gated_cell", GatedCell.from_config)

if __name__ == "__main__":
    app()

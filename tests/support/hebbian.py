"""A second kind of memory: Hebbian, without the delta rule's error correction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltamem.rule import Outcome, register_memory_kind
from deltamem.rule.kind import LayerState, empty_state


@dataclass(frozen=True)
class Hebbian:
    """`S <- S + g v k^T` with g up to 0.2, read as `S q / (1 + |z q|)`, z the sum of the keys. A token reads, then writes."""

    r: int
    opened: float

    @classmethod
    def from_config(cls, config: Any) -> Hebbian:
        if config.num_states != 1:
            raise ValueError(f"num_states={config.num_states} is not accepted; a Hebbian memory has 1")
        return cls(config.r, config.beta_bias)

    @property
    def state_parts(self) -> Mapping[str, tuple[int, ...]]:
        return {"outer": (self.r, self.r), "keys": (self.r,)}

    read_rows = read_width = property(lambda self: self.r)
    write_rows = property(lambda self: 2 * self.r + 1)
    bias_rows = property(lambda self: 1)
    row_groups = property(lambda self: {"q": self.r, "k": self.r, "v": self.r, "gate": 1})

    def read_and_write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        q, rows = projected.split([self.r, self.write_rows], dim=-1)
        return self._run(q, rows, bias, state, valid)

    def write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        outcome = self._run(torch.zeros_like(projected[..., : self.r]), projected, bias, state, valid)
        return outcome._replace(reads=projected[..., :0])

    def read(self, projected: Tensor, state: LayerState, valid: Tensor | None) -> Tensor:
        reads = self._read(projected, state)
        return reads if valid is None else torch.where(valid[..., None], reads, 0.0)

    def initialise(self, weight: Tensor, bias: Tensor) -> None:
        nn.init.normal_(weight, std=0.3)
        nn.init.constant_(bias, self.opened)

    def check_fits(self, width: int) -> None:
        if self.r > width:
            raise ValueError(f"r={self.r} is more than the width {width}")

    def gates_at_rest(self, bias: Tensor) -> Mapping[str, Tensor]:
        return {"write": 0.2 * bias.sigmoid(), "keep": torch.ones_like(bias)}

    def mean_gates(self, projected: Tensor, bias: Tensor) -> Mapping[str, Tensor]:
        return {"write": 0.2 * (projected[..., -1] + bias).sigmoid()}

    def describe(self) -> str:
        return "one state"

    def _read(self, q: Tensor, state: LayerState) -> Tensor:
        length = 1 + torch.einsum("bj,btj->bt", state["keys"], q).abs()  # [B, T]
        return torch.einsum("bij,btj->bti", state["outer"], q) / length[..., None]

    def _run(self, q: Tensor, rows: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        batch, tokens, _ = rows.shape
        valid = torch.ones(batch, tokens, dtype=torch.bool) if valid is None else valid
        q, rows = (torch.where(valid[..., None], part, 0.0) for part in (q, rows))
        state = empty_state(self, batch, rows.device) if state is None else state
        reads, opened = [], torch.zeros(batch)
        for step in range(tokens):
            reads.append(self._read(q[:, step : step + 1], state))
            k, v, logit = rows[:, step].split([self.r, self.r, 1], dim=-1)
            gate = 0.2 * torch.where(valid[:, step, None], (logit + bias).sigmoid(), 0.0)
            state = {
                "outer": state["outer"] + gate[..., None] * v[:, :, None] * k.tanh()[:, None],
                "keys": state["keys"] + gate * k.tanh(),
            }
            opened = opened + gate[:, 0]
        return Outcome(torch.cat(reads, dim=1) if reads else q, state, opened[:, None])


register_memory_kind("hebbian", Hebbian.from_config)

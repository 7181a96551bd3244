"""From a layer's projections to queries, keys, values and gates (arXiv 2605.12357): the definition, in plain PyTorch.

    q = unit(tanh(Wq x))    k = unit(tanh(Wk x))    v = Wv x    β = sigmoid(Wβ x + bβ)    λ = sigmoid(Wλ x + bλ)

Shapes: B batch rows, N parallel states, T tokens, r width of a state, G gates of one kind per state (r or 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Decay = Literal["coupled", "learned", "none"]
# The smallest length by which a query or a key is divided.
EPSILON = 1e-6


@dataclass(frozen=True)
class Gating:
    """The layout of a layer's projections, and how they become gates.

    The projections of a token are the rows q | k | v | β | λ, with λ only if the decay is learned. q, k and v have
    `num_states * r` rows each; β and λ have `num_states * gate_rows` each. The rows of one state are adjacent.

    Args:
        r: width of a state.
        num_states: number of parallel states.
        decay: the share of the state that a write keeps: "coupled" (1 - β), "learned" (λ), or "none" (all of it).
        decay_first: whether the state decays before a token's error is measured.
        rowwise_gates: whether each row of a state has its own gate, or the state has a single one.

    Raises:
        ValueError: the decay is unknown.
    """

    r: int
    num_states: int = 1
    decay: Decay = "coupled"
    decay_first: bool = False
    rowwise_gates: bool = True
    # Numbers of rows: of one gate per state; of q (and of k, and of v); of β and λ, which have a bias; of all but q.
    gate_rows: int = field(init=False, repr=False, compare=False)
    query_rows: int = field(init=False, repr=False, compare=False)
    bias_rows: int = field(init=False, repr=False, compare=False)
    write_rows: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.decay not in get_args(Decay):
            raise ValueError(f"unknown decay {self.decay!r}; choose one of {', '.join(get_args(Decay))}")
        gate_rows, query_rows = self.r if self.rowwise_gates else 1, self.num_states * self.r
        bias_rows = self.num_states * gate_rows * (2 if self.decay == "learned" else 1)
        heights = {"gate_rows": gate_rows, "query_rows": query_rows, "bias_rows": bias_rows}
        for name, height in {**heights, "write_rows": 2 * query_rows + bias_rows}.items():
            object.__setattr__(self, name, height)  # computed once, because every token needs them; the class is frozen


class Writes(NamedTuple):
    """The keys, values and gates with which tokens write, `[batch, num_states, tokens, r]` each."""

    k: Tensor
    v: Tensor
    keep: Tensor
    erase: Tensor
    write: Tensor


def queries(projected: Tensor, gating: Gating, mask: Tensor | None) -> Tensor:
    """Queries of unit length `[batch, num_states, tokens, r]` from their rows `[batch, tokens, num_states * r]`.

    The queries of a masked token are zero.
    """
    return _unit(_unmasked(projected, mask), gating)


def writes(projected: Tensor, gate_bias: Tensor, gating: Gating, mask: Tensor | None) -> tuple[Writes, Tensor]:
    """Keys, values and gates from the rows k | v | β | λ, and how far the tokens open the write gate.

    Args:
        projected: `[batch, tokens, gating.write_rows]`.
        gate_bias: `[gating.bias_rows]`.
        gating: the layout of the rows.
        mask: `[batch, tokens]`; a masked token becomes the rule's identity, whatever its projections are.

    Returns:
        The writes, and the gate β, averaged over the rows of a state and summed over the real tokens, `[batch, num_states]`.
    """
    keys, values, logits = _unmasked(projected, mask).tensor_split([gating.query_rows, 2 * gating.query_rows], dim=-1)
    gates = torch.sigmoid(logits + gate_bias)  # [B, T, kinds * N * G]
    gates = rearrange(gates, "b t (kind n g) -> kind b n t g", n=gating.num_states, g=gating.gate_rows)
    gates = gates.expand(*gates.shape[:-1], gating.r)  # [kinds, B, N, T, r]
    beta = gates[0]  # [B, N, T, r]
    keep = {"coupled": 1 - beta, "learned": gates[-1], "none": torch.ones_like(beta)}[gating.decay]
    erase = keep * beta if gating.decay_first else beta
    if mask is not None:
        real = mask[:, None, :, None]  # [B, 1, T, 1]
        keep, erase, beta = torch.where(real, keep, 1.0), torch.where(real, erase, 0.0), torch.where(real, beta, 0.0)
    return Writes(_unit(keys, gating), _by_state(values, gating), keep, erase, beta), beta.mean(-1).sum(-1)


def _unmasked(projected: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros for masked tokens, so that neither their values nor their gradients reach the rest."""
    return projected if mask is None else torch.where(mask[..., None], projected, 0.0)


def _unit(projected: Tensor, gating: Gating) -> Tensor:
    return F.normalize(_by_state(torch.tanh(projected), gating), dim=-1, eps=EPSILON)


def _by_state(projected: Tensor, gating: Gating) -> Tensor:
    return rearrange(projected, "b t (n r) -> b n t r", n=gating.num_states)

"""The definition of the delta rule (arXiv 2605.12357), as a loop over tokens. All other backends are tested against it.

Shapes: B batch rows, H heads (parallel states), T tokens, r width of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See `deltamem.rule.delta_rule`; q to write are [B, H, T, r], state is [B, H, r, r]."""
    reads = []
    for t in range(q.shape[2]):
        q_t, k_t, v_t, keep_t, erase_t, write_t = (x[:, :, t, :, None] for x in (q, k, v, keep, erase, write))  # [B, H, r, 1]
        reads.append(state @ q_t)  # ρ = S q, from the state before the token's own write
        predicted = state @ k_t  # the value that the state holds for this key
        state = keep_t * state + (write_t * v_t - erase_t * predicted) @ k_t.transpose(-1, -2)  # [B, H, r, r]
    return torch.cat(reads, dim=-1).transpose(-1, -2), state  # [B, H, T, r]

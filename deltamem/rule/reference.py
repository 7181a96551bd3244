"""The definition of the delta rule, as a loop over tokens. Every other backend is compared with this one."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See `deltamem.rule.delta_rule`; q to write are [batch, heads, tokens, r], state is [batch, heads, r, r]."""
    reads = []
    for t in range(q.shape[2]):
        q_t, k_t, v_t, keep_t, erase_t, write_t = (x[:, :, t, :, None] for x in (q, k, v, keep, erase, write))
        reads.append(state @ q_t)
        predicted = state @ k_t
        state = keep_t * state + (write_t * v_t - erase_t * predicted) @ k_t.transpose(-1, -2)
    return torch.cat(reads, dim=-1).transpose(-1, -2), state

"""The delta rule chunk by chunk, in plain PyTorch: autograd and any device.

Each row of the state is a separate memory, `s <- keep s + u k` with `u = write v - erase (s . k)`; all rows share the keys.
Inside a chunk the writes `u` of a row solve a unit lower-triangular system that is linear in the row's start `s0`. So every
chunk is an affine map `s0 -> M s0 + b`; all maps are computed at once and only they are applied one after the other.

What a token's write is still worth later is the product of the gates `keep` in between. These products are formed from the
gates themselves (not from logarithms), so that a gate of exactly zero has its value and its gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

CHUNK = 16


def chunked_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """See `deltamem.rule.delta_rule`; q to write are [batch, heads, tokens, r], state is [batch, heads, r, r]."""
    tokens = q.shape[2]
    chunk = min(CHUNK, tokens)
    padding = -tokens % chunk  # identity tokens: keep everything, write nothing
    q, k, v, erase, write = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v, erase, write))
    keep = F.pad(keep, (0, 0, 0, padding), value=1.0)

    # Keys and queries are shared by the rows of the state: [b, h, n chunks, C tokens, r].
    q, k = (rearrange(x, "b h (n c) r -> b h n c r", c=chunk) for x in (q, k))
    # Gates and values belong to one row i each: [b, h, n, i, C].
    v, keep, erase, write = (rearrange(x, "b h (n c) i -> b h n i c", c=chunk) for x in (v, keep, erase, write))

    kept = _kept_between(keep)
    from_start, to_end, over_chunk = kept[..., :-1, 0], kept[..., -1, 1:], kept[..., -1, 0]
    from_earlier = kept[..., :-1, 1:]  # [b, h, n, i, t, j], zero unless j < t

    # The writes u = u_own + u_start s0, by one triangular solve with 1 + r right-hand sides.
    similarity = rearrange(k @ k.transpose(-1, -2), "b h n t j -> b h n 1 t j")
    system = rearrange(erase, "... t -> ... t 1") * from_earlier * similarity
    start_side = rearrange(-erase * from_start, "... t -> ... t 1") * rearrange(k, "b h n t r -> b h n 1 t r")
    right = torch.cat([rearrange(write * v, "... t -> ... t 1"), start_side], dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u_own, u_start = solved[..., 0], solved[..., 1:]  # [b, h, n, i, C], [b, h, n, i, C, r]

    # The affine map of every chunk: M [b, h, n, i, r, r] and b [b, h, n, i, r].
    keys_at_end = rearrange(to_end, "b h n i c -> b h n i 1 c") * rearrange(k, "b h n c r -> b h n 1 r c")
    diagonal = torch.diag_embed(rearrange(over_chunk, "... -> ... 1").expand(*over_chunk.shape, k.shape[-1]))
    matrix = diagonal + keys_at_end @ u_start
    offset = einsum(keys_at_end, u_own, "b h n i r c, b h n i c -> b h n i r")

    # One after the other, on [b h i] small matrices at a time; a fused multiply-add of few numbers costs what its call costs.
    steps = rearrange(matrix, "b h n i r s -> n (b h i) r s").unbind()
    offsets = rearrange(offset, "b h n i r -> n (b h i) r 1").unbind()
    row = rearrange(state, "b h i r -> (b h i) r 1")
    starts = []
    for step, change in zip(steps, offsets, strict=True):
        starts.append(row)
        row = torch.baddbmm(change, step, row)
    start = rearrange(torch.stack(starts), "n (b h i) r 1 -> b h n i r", b=state.shape[0], h=state.shape[1])
    state = row.reshape(state.shape)

    u = u_own + einsum(u_start, start, "b h n i c r, b h n i r -> b h n i c")
    seen = from_earlier * rearrange(q @ k.transpose(-1, -2), "b h n t j -> b h n 1 t j")
    reads = from_start * (start @ q.transpose(-1, -2)) + einsum(seen, u, "b h n i t j, b h n i j -> b h n i t")
    return rearrange(reads, "b h n i c -> b h (n c) i")[:, :, :tokens], state


def _kept_between(keep: Tensor) -> Tensor:
    """What is kept from one point of a chunk to a later one.

    Args:
        keep: the gates of C tokens, `[..., C]`.

    Returns:
        `[..., t, j]` with t and j in 0..C: the product of the gates of the tokens j, ..., t - 1 where j <= t, else zero.
        Seen from token t, column 0 is the state before the chunk and column j + 1 is the write of token j.
    """
    points = keep.shape[-1] + 1
    rows = torch.arange(points, device=keep.device)
    passed = rearrange(rows, "t -> t 1") > rearrange(rows, "j -> 1 j")
    factors = torch.where(passed, rearrange(F.pad(keep, (1, 0)), "... t -> ... t 1"), 1.0)
    return torch.where(passed | torch.eye(points, dtype=torch.bool, device=keep.device), factors.cumprod(-2), 0.0)

"""The chunk-parallel delta rule in plain PyTorch: it works with autograd and on any device.

Each row of the state is a separate memory, `s <- keep s + u k` with `u = write v - erase (s . k)`; all rows share the keys.
Within a chunk, the writes `u` of a row solve a unit lower-triangular system that is linear in the row's start `s0`. So every
chunk is an affine map `s0 -> M s0 + b`. All maps are computed in parallel; only applying them is sequential.

Between two tokens, a write decays by the product of the `keep` gates in between. These products are computed from the gates
themselves, not from their logarithms, so that a gate of exactly zero has the right value and gradient.

Shapes: b batch rows, h heads (parallel states), n chunks, c tokens of a chunk, t and j tokens within it, i rows of a state,
r width of a state.
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
    """See `deltamem.rule.delta_rule`; q to write are [b, h, tokens, r], state is [b, h, r, r]."""
    tokens = q.shape[2]
    chunk = min(CHUNK, tokens)
    padding = -tokens % chunk  # padding tokens are the identity: they keep everything and write nothing
    q, k, v, erase, write = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v, erase, write))
    keep = F.pad(keep, (0, 0, 0, padding), value=1.0)

    # All rows of a state share the keys and queries; each row i has its own values and gates.
    q, k = (rearrange(x, "b h (n c) r -> b h n c r", c=chunk) for x in (q, k))
    v, keep, erase, write = (rearrange(x, "b h (n c) i -> b h n i c", c=chunk) for x in (v, keep, erase, write))

    kept = _kept_between(keep)  # [b, h, n, i, c + 1, c + 1]
    from_start, to_end, over_chunk = kept[..., :-1, 0], kept[..., -1, 1:], kept[..., -1, 0]
    from_earlier = kept[..., :-1, 1:]  # [b, h, n, i, t, j], zero unless j < t

    # The writes are u = u_own + u_start s0: one triangular solve with 1 + r right-hand sides.
    similarity = rearrange(k @ k.transpose(-1, -2), "b h n t j -> b h n 1 t j")
    system = rearrange(erase, "... t -> ... t 1") * from_earlier * similarity
    start_side = rearrange(-erase * from_start, "... t -> ... t 1") * rearrange(k, "b h n t r -> b h n 1 t r")
    right = torch.cat([rearrange(write * v, "... t -> ... t 1"), start_side], dim=-1)  # [b, h, n, i, t, 1 + r]
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u_own, u_start = solved[..., 0], solved[..., 1:]  # [b, h, n, i, c], [b, h, n, i, c, r]

    # The affine map of every chunk: M [b, h, n, i, r, r] and b [b, h, n, i, r].
    keys_at_end = rearrange(to_end, "b h n i c -> b h n i 1 c") * rearrange(k, "b h n c r -> b h n 1 r c")
    diagonal = torch.diag_embed(rearrange(over_chunk, "... -> ... 1").expand(*over_chunk.shape, k.shape[-1]))
    matrix = diagonal + keys_at_end @ u_start
    offset = einsum(keys_at_end, u_own, "b h n i r c, b h n i c -> b h n i r")

    # The sequential part: one batched multiply-add per chunk. The matrices are tiny, so its cost is the call overhead.
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
    seen = from_earlier * rearrange(q @ k.transpose(-1, -2), "b h n t j -> b h n 1 t j")  # [b, h, n, i, t, j]
    reads = from_start * (start @ q.transpose(-1, -2)) + einsum(seen, u, "b h n i t j, b h n i j -> b h n i t")
    return rearrange(reads, "b h n i c -> b h (n c) i")[:, :, :tokens], state


def _kept_between(keep: Tensor) -> Tensor:
    """How much is kept from one point of a chunk to a later one.

    Args:
        keep: the gates of c tokens, `[..., c]`.

    Returns:
        `[..., t, j]` with t and j in 0..c: the product of the gates of tokens j, ..., t - 1 if j <= t, else zero.
        For token t, column 0 is the state before the chunk and column j + 1 is the write of token j.
    """
    points = keep.shape[-1] + 1
    rows = torch.arange(points, device=keep.device)
    passed = rearrange(rows, "t -> t 1") > rearrange(rows, "j -> 1 j")
    factors = torch.where(passed, rearrange(F.pad(keep, (1, 0)), "... t -> ... t 1"), 1.0)
    return torch.where(passed | torch.eye(points, dtype=torch.bool, device=keep.device), factors.cumprod(-2), 0.0)

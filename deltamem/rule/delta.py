"""The delta rule as one function, for all backends.

Shapes: B batch rows, H heads (parallel states), T tokens, r width of a state.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from deltamem.rule.backends import choose, rule
from deltamem.rule.operator import delta_rule_operator


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Read and write a delta-rule memory token by token (arXiv 2605.12357).

    For every token, in order, with `S` the state before it::

        read   = S q
        S     <- Diag(keep) S - Diag(erase) (S k) k^T + Diag(write) v k^T

    so a token never reads its own write. The `heads` are independent memories.

    Args:
        q, k, v: queries, keys and values, `[batch, heads, tokens, r]`. In δ-mem, `q` and `k` have unit length.
        keep, erase, write: one gate per row of the state, in [0, 1], `[batch, heads, tokens, r]`.
        state: the memory before the first token, `[batch, heads, r, r]`; zero if not given.
        mask: `[batch, tokens]`, True for real tokens. Any other token reads zero and leaves the state unchanged, whatever
            its values are, NaN included.
        backend: "reference" (the token loop that defines the rule), "chunked" (chunk-parallel, in PyTorch), "compiled"
            (Numba, on the CPU), "triton" (on CUDA), or "auto": the fastest one available for the tensors' device.

    Returns:
        The reads `[batch, heads, tokens, r]` and the state after the last token `[batch, heads, r, r]`, both float32.

    Raises:
        ValueError: a shape does not fit, or the backend is unknown or does not run here.
    """
    _check_shapes(q, {"k": k, "v": v, "keep": keep, "erase": erase, "write": write}, state, mask)
    backend = choose(backend, q.device.type)
    q, k, v, keep, erase, write = (x.float() for x in (q, k, v, keep, erase, write))
    if mask is not None:
        # A masked token becomes the identity of the rule: it reads with a zero query, keeps everything, writes nothing.
        valid = mask.bool()[:, None, :, None]  # [B, 1, T, 1]
        q, k, v, erase, write = (torch.where(valid, x, 0.0) for x in (q, k, v, erase, write))
        keep = torch.where(valid, keep, 1.0)
    if state is None:
        batch, heads, _, r = q.shape
        state = q.new_zeros(batch, heads, r, r)
    state = state.float()
    if q.shape[2] == 0:
        return torch.zeros_like(q), state
    if torch.compiler.is_compiling():
        return cast(tuple[Tensor, Tensor], delta_rule_operator(q, k, v, keep, erase, write, state, backend))
    return rule(backend)(q, k, v, keep, erase, write, state)


def read(q: Tensor, state: Tensor, mask: Tensor | None = None) -> Tensor:
    """Read a state without writing to it: `S q` for every token.

    Args:
        q: `[batch, heads, tokens, r]`.
        state: `[batch, heads, r, r]`.
        mask: `[batch, tokens]`, as in `delta_rule`.

    Returns:
        The reads `[batch, heads, tokens, r]`, float32.

    Raises:
        ValueError: a shape does not fit.
    """
    _check_shapes(q, {}, state, mask)
    q = q.float()
    if mask is not None:
        q = torch.where(mask.bool()[:, None, :, None], q, 0.0)
    return q @ state.float().transpose(-1, -2)  # [B, H, T, r]


def _check_shapes(q: Tensor, others: dict[str, Tensor], state: Tensor | None, mask: Tensor | None) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must be [batch, heads, tokens, r], got the shape {tuple(q.shape)}")
    batch, heads, tokens, r = q.shape
    for name, tensor in others.items():
        check_shape(name, tensor, (batch, heads, tokens, r), "q")
    if state is not None:
        check_shape("state", state, (batch, heads, r, r), "q")
    if mask is not None:
        check_shape("mask", mask, (batch, tokens), "q")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], partner: str) -> None:
    """Refuse a tensor whose shape does not match that of its partner."""
    if tensor.shape != expected:
        raise ValueError(f"{name} must have the shape {expected} to go with {partner}, got {tuple(tensor.shape)}")

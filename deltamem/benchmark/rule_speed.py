"""Times the delta rule alone: every backend, next to the token loop that defines it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from deltamem.benchmark.interleave import take_turns
from deltamem.benchmark.ratios import median_interval, quartiles
from deltamem.rule import delta_rule
from deltamem.rule.backends import BACKENDS, choose

TOKEN_LOOP = "reference"


def time_rule(
    lengths: Sequence[int], sizes: tuple[int, int, int], runs: int, device: torch.device, progress: Progress
) -> list[dict[str, Any]]:
    """Time all backends on texts of several lengths, forward (without gradients) and backward.

    Args:
        lengths: numbers of tokens.
        sizes: batch, heads and r of the memories, `[batch, heads, r, r]`.
        runs: number of turns.
        device: the device to run on.
        progress: shows the turns.

    Returns:
        One row per length and backend.
    """
    backends = _backends(device)
    rows: list[dict[str, Any]] = []
    for tokens in lengths:
        inputs = _random_inputs(sizes, tokens, device)
        rows_of = {backend: {"backend": backend, "tokens": tokens} for backend in backends}
        for direction in (_forward, _backward):
            name = direction.__name__.removeprefix("_")
            workloads = [partial(direction, backend, inputs) for backend in backends]
            times = take_turns(workloads, runs, device, progress, f"rule {name}, {tokens:,} tokens")
            for index, backend in enumerate(backends):
                rows_of[backend] |= _figures(name, [turn[index] for turn in times], [turn[0] for turn in times])
        rows += rows_of.values()
    return rows


def _backends(device: torch.device) -> list[str]:
    """The backends that work on a device, the token loop first."""
    names = [TOKEN_LOOP]
    for name in BACKENDS:
        with suppress(ValueError):  # it needs a missing package or another device
            names += [choose(name, device.type)]
    return list(dict.fromkeys(names))


def _figures(direction: str, times: Sequence[float], token_loop: Sequence[float]) -> dict[str, Any]:
    speedups = [loop / time for loop, time in zip(token_loop, times, strict=True)]
    return {
        f"{direction}_ms": statistics.median(times),
        f"{direction}_ms_quartiles": quartiles(times),
        f"{direction}_speedup": statistics.median(speedups),
        f"{direction}_speedup_interval": median_interval(speedups),
    }


def _random_inputs(sizes: tuple[int, int, int], tokens: int, device: torch.device) -> list[Tensor]:
    """Random q, k of unit length, v, and coupled gates keep, erase, write, each `[batch, heads, tokens, r]`; and a state."""
    (batch, heads, r), generator = sizes, torch.Generator().manual_seed(0)
    float32 = partial(torch.empty, dtype=torch.float32, device="cpu")
    q, k, v = float32(3, batch, heads, tokens, r).normal_(generator=generator)
    beta = float32(batch, heads, tokens, r).uniform_(generator=generator)
    state = float32(batch, heads, r, r).normal_(generator=generator)
    inputs = (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, 1 - beta, beta, beta, state)
    return [tensor.to(device).requires_grad_() for tensor in inputs]


def _apply(backend: str, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    q, k, v, keep, erase, write, state = inputs
    return delta_rule(q, k, v, keep, erase, write, state, backend=backend)


@contextmanager
def _forward(backend: str, inputs: Sequence[Tensor]) -> Iterator[Callable[[], object]]:
    with torch.no_grad():
        yield lambda: _apply(backend, inputs)


@contextmanager
def _backward(backend: str, inputs: Sequence[Tensor]) -> Iterator[Callable[[], object]]:
    reads, state = _apply(backend, inputs)
    total = reads.sum() + state.sum()
    yield lambda: torch.autograd.grad(total, inputs)

"""Memories of random numbers, made without a model."""

from dataclasses import replace

import torch
from torch import Tensor

from deltamem import DeltaMemState
from deltamem.memory.snapshot import OpenSegment, Snapshot

FIRST, SECOND = "model.layers.0.self_attn", "model.layers.1.self_attn"
METADATA = {"format": "deltamem-state", "version": "1", "fingerprint": '"abc"'}


def random_tensors(batch: int = 3, states: int = 2, r: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, states, r, r, generator=generator) for name in (FIRST, SECOND)}


def of(tensors: dict[str, Tensor], fingerprint: str | None = None, open_segment: OpenSegment | None = None) -> DeltaMemState:
    """A memory of these states, with row i having seen i tokens."""
    rows = next(iter(tensors.values())).shape[0] if tensors else 1
    flat = {**tensors, "@tokens": torch.arange(rows)}
    snapshot = Snapshot.from_flat(flat)
    return DeltaMemState(replace(snapshot, open_segment=open_segment), fingerprint)


def random_state(batch: int = 3, seed: int = 0, fingerprint: str | None = "abc") -> DeltaMemState:
    return of(random_tensors(batch, seed=seed), fingerprint)


def same(one: DeltaMemState, other: DeltaMemState) -> bool:
    """Bit for bit, all that they hold and the fingerprint."""
    first, second = one.snapshot.to_flat(), other.snapshot.to_flat()
    return (
        one.fingerprint == other.fingerprint
        and first.keys() == second.keys()
        and all(tensor.numpy().tobytes() == second[name].numpy().tobytes() for name, tensor in first.items())
    )

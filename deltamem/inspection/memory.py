"""Implements `deltamem inspect MEMORY`: how much a saved memory holds, layer by layer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from deltamem.chat.saved import SavedSession
from deltamem.chat.session import FILE
from deltamem.inspection.layer_names import in_order
from deltamem.memory.state import DeltaMemState
from deltamem.memory.state_file import read_state_file

SHOWN_SINGULAR_VALUES = 4


def load_memory(place: str | os.PathLike[str]) -> tuple[DeltaMemState, SavedSession | None]:
    """Load a memory from a memory file, or from a session together with the session's record.

    Args:
        place: a memory file, or the folder or file of a session.

    Raises:
        OSError, ValueError: it does not exist, or the file is damaged or something else.
    """
    path = Path(place) / FILE if os.path.isdir(place) else Path(place)
    snapshot, fingerprint, metadata = read_state_file(path)  # the order of tensors in a file is arbitrary
    state = DeltaMemState(snapshot.ordered(tuple(sorted(snapshot.layers, key=in_order))), fingerprint)
    if "session" not in metadata:
        return state, None
    return state[0], SavedSession.read(metadata, path)  # the other rows are the memories that its context started from


def inspect_memory(place: str) -> dict[str, Any]:
    """Describe a saved memory.

    Args:
        place: a memory file, or the folder of a session.

    Returns:
        `rows`, for each memory in the file the `tokens` written to it and the `norm` of all its states; `layers`, for each the
        result of `describe_layer`; the `fingerprint` of the adapter that wrote it; and, for a session, figures about its
        context.

    Raises:
        OSError, ValueError: it does not exist, or the file is damaged or something else.
    """
    state, notes = load_memory(place)
    norms = norm_of(state)
    return {
        "memory": place,
        "session": notes and {"saves": notes.saves, "messages": len(notes.messages), "context_tokens": len(notes.written)},
        "fingerprint": state.fingerprint,
        "bytes": state.nbytes,
        "rows": [{"tokens": tokens, "norm": norm} for tokens, norm in zip(state.tokens, norms.tolist(), strict=True)],
        "layers": [{"name": name, **describe_layer(tensor)} for name, tensor in state.matrices.items()],
    }


def describe_layer(states: Tensor) -> dict[str, Any]:
    """Measure how much a layer's states hold.

    Args:
        states: `[batch, states, r, r]`.

    Returns:
        Over rows, `norm`, the Frobenius norm of all states of the layer; over rows and states, `singular_values`, in descending
        order, and `effective_rank`.
    """
    values = torch.linalg.svdvals(states)
    return {
        "norm": states.flatten(1).norm(dim=1).tolist(),
        "effective_rank": effective_rank(values).tolist(),
        "singular_values": values.tolist(),
    }


def effective_rank(singular_values: Tensor) -> Tensor:
    """The effective number of directions of a matrix: exp of the entropy of its singular values (Roy and Vetterli 2007).

    Args:
        singular_values: `[..., r]`.

    Returns:
        `[...]`, from 1 (one direction) to r (all equal); 0 for a zero matrix.
    """
    total = singular_values.sum(-1, keepdim=True)
    share = singular_values / total.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(total.squeeze(-1) > 0, torch.special.entr(share).sum(-1).exp(), 0.0)


def norm_of(state: DeltaMemState) -> Tensor:
    """The Frobenius norm of all states of each row, `[batch]`."""
    return torch.cat([tensor.flatten(1) for tensor in state.tensors.values()], dim=1).norm(dim=1)


def print_memory(figures: dict[str, Any]) -> None:
    """Print the result of `inspect_memory` as tables; layers are averaged over the rows."""
    console = Console()
    session = figures["session"]
    what = "A memory" if session is None else "The memory of a session"
    times = session and ("once" if session["saves"] == 1 else f"{session['saves']} times")
    saved = session and f", saved {times}, with {session['messages']} messages in its context"
    console.print(
        f"\n[bold]{what}[/]{saved or ''}: {len(figures['rows'])} row{'s' * (len(figures['rows']) > 1)}, {figures['bytes']:,} "
        f"bytes, written by the adapter {escape(str(figures['fingerprint'] or 'unknown'))}"
    )
    rows = Table("row", "tokens written", "norm", box=box.SIMPLE, pad_edge=False)
    for index, row in enumerate(figures["rows"]):
        rows.add_row(str(index), f"{row['tokens']:,}", f"{row['norm']:.3f}")
    console.print(rows)
    layers = Table("layer", "norm", "effective rank", "singular values", box=box.SIMPLE, pad_edge=False)
    for row in figures["layers"]:
        values = torch.tensor(row["singular_values"], dtype=torch.float32, device="cpu").mean((0, 1))[:SHOWN_SINGULAR_VALUES]
        means = (torch.tensor(row[key], dtype=torch.float32, device="cpu").mean().item() for key in ("norm", "effective_rank"))
        layers.add_row(row["name"], *(f"{mean:.3f}" for mean in means), " ".join(f"{value:.3f}" for value in values.tolist()))
    console.print(layers)

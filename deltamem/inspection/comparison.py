"""Implements `deltamem inspect MEMORY --compare OTHER`: how similar two memories are, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deltamem.memory.state import DeltaMemState


def compare_memories(first: DeltaMemState, second: DeltaMemState) -> dict[str, Any]:
    """Compare two memories, row by row.

    Returns:
        `layers`, for each its `cosine` (of its states as one vector; None if either is empty) and `distance` (the Frobenius
        norm of the difference), as lists over the rows; the same for all layers together; and `same_adapter`, whether one
        adapter wrote both, None if unknown: the numbers of different adapters have different meanings.

    Raises:
        ValueError: the memories differ in modules, shapes or number of rows.
    """
    check_alike(first, second)
    fingerprints = [state.fingerprint for state in (first, second)]
    pairs = {name: (tensor.flatten(1), second.tensors[name].flatten(1)) for name, tensor in first.tensors.items()}
    whole = tuple(torch.cat(parts, dim=1) for parts in zip(*pairs.values(), strict=True))
    return {
        "same_adapter": None if None in fingerprints else fingerprints[0] == fingerprints[1],
        "layers": [{"name": name, **_likeness(*pair)} for name, pair in pairs.items()],
        **_likeness(*whole),
    }


def check_alike(first: DeltaMemState, second: DeltaMemState) -> None:
    """Check that two memories can be compared.

    Raises:
        ValueError: they differ in modules, shapes or number of rows; the message says how.
    """
    shapes: list[Mapping[str, Any]] = [
        {name: (*tensor.shape,) for name, tensor in state.tensors.items()} for state in (first, second)
    ]
    different = [name for name in dict.fromkeys([*shapes[0], *shapes[1]]) if shapes[0].get(name) != shapes[1].get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"the memories have different shapes: {name} has {shapes[0].get(name, 'nothing')} in the first and "
            f"{shapes[1].get(name, 'nothing')} in the second ([rows, states, r, r]). Compare memories of one kind of adapter "
            "with as many rows; memory[0] is one row"
        )


def print_comparison(figures: dict[str, Any]) -> None:
    """Print the result of `compare_memories` as a table of means over the rows."""
    console = Console()
    if figures["same_adapter"] is False:
        console.print("[bold]Different adapters wrote these memories:[/] the same numbers mean different things in them.")
    table = Table("layer", "cosine", "distance", box=box.SIMPLE, pad_edge=False)
    for row in (*figures["layers"], {**figures, "name": "all layers"}):
        cosines = [cosine for cosine in row["cosine"] if cosine is not None]
        cosine = f"{sum(cosines) / len(cosines):.3f}" if cosines else "–"
        table.add_row(row["name"], cosine, f"{sum(row['distance']) / len(row['distance']):.3f}")
    console.print(table)


def _likeness(first: Tensor, second: Tensor) -> dict[str, list[float | None]]:
    """Cosine and distance of vectors `[batch, numbers]`."""
    both_written = (first.norm(dim=1) > 0) & (second.norm(dim=1) > 0)
    cosines = F.cosine_similarity(first, second, dim=1).tolist()
    return {
        "cosine": [cosine if known else None for cosine, known in zip(cosines, both_written.tolist(), strict=True)],
        "distance": (first - second).norm(dim=1).tolist(),
    }

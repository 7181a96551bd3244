"""How full the memory of a history is, by layer, after each of its sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltamem.html.page import spread
from deltamem.inspection.layer_names import short_names
from deltamem.inspection.memory import load_memory, norm_of

MOST_SECTIONS = 60  # thinned out if there are more


@dataclass(frozen=True)
class HeatMap:
    """Norms of a memory's states.

    Args:
        sections: column labels: the section's number, and how many tokens were written by its end.
        layers: row labels; the first is for all layers together.
        norms: `[layers, sections]`.
    """

    sections: list[tuple[str, int]]
    layers: list[str]
    norms: list[list[float]]

    @property
    def scales(self) -> list[float]:
        """The norm at the top of each row's colour scale; the row of all layers has a separate scale."""
        whole, *layers = (max(row) for row in self.norms)
        return [whole or 1.0, *[max(layers) or 1.0] * len(layers)]


def heat_map(files: Sequence[Path]) -> HeatMap:
    """Compute the norms of memories that were saved one after another.

    Raises:
        ValueError, OSError: a file is damaged or not a memory, or its layers differ from the first one's.
    """
    chosen = [files[place] for place in spread(len(files), MOST_SECTIONS)]
    memories = [load_memory(file)[0] for file in chosen]
    layers = [*memories[0].tensors]
    for file, memory in zip(chosen, memories, strict=True):
        if [*memory.tensors] != layers:
            raise ValueError(f"{file} is a memory of other layers than {chosen[0]}; keep memories of one adapter in a folder")
    norms = [[norm_of(memory)[0].item() for memory in memories]]
    norms += [[memory.tensors[name][0].norm().item() for memory in memories] for name in layers]
    sections = [(file.stem.lstrip("0") or "0", memory.tokens[0]) for file, memory in zip(chosen, memories, strict=True)]
    return HeatMap(sections, ["all", *short_names(layers)], norms)

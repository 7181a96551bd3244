"""Layer names: their order, and short forms for tables."""

from __future__ import annotations

from collections.abc import Sequence


def short_names(layers: Sequence[str]) -> list[str]:
    """Shorten names of attention modules to the parts in which they differ: "3" for "model.layers.3.self_attn"."""
    parts = [name.split(".") for name in layers]
    alike = len({len(part) for part in parts}) == 1
    places = [place for place, column in enumerate(zip(*parts, strict=False)) if len({*column}) > 1]
    return [".".join(part[place] for place in places) for part in parts] if alike and places else [*layers]


def in_order(name: str) -> list[tuple[int, str]]:
    """A sort key for module names that follows the model: layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]

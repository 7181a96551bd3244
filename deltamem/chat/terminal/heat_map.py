"""A memory as a picture for the terminal: one small heat map per attention module."""

from __future__ import annotations

from itertools import zip_longest

from einops import rearrange
from rich.color import Color
from rich.columns import Columns
from rich.console import Group
from rich.style import Style
from rich.text import Text
from torch import Tensor

from deltamem.memory.state import DeltaMemState

# The colours, as red, green and blue, of zero, the largest number and the smallest number.
ZERO, POSITIVE, NEGATIVE = (24, 24, 24), (255, 150, 30), (60, 130, 255)
CAPTION = (
    "Each map is one layer's state, scaled to its largest number: orange is positive, blue negative; rows are the "
    "components of values, columns those of keys. The number beside a layer is the norm of its state."
)
NO_COLOURS = "The number beside a layer is the norm of its state; the maps need a terminal with colours."


def picture(memory: DeltaMemState, colours: bool) -> Group:
    """Draw a memory for rich.

    Args:
        memory: the memory, of one row.
        colours: whether the terminal has colours; without them, only the norms are shown.
    """
    names = sorted(memory.tensors, key=_numbers_by_size)  # a file has them in any order
    labels, states = _labels(names), [memory.matrices[name][0].cpu() for name in names]  # [states, r, r] each
    drawn = [_draw(label, state, colours) for label, state in zip(labels, states, strict=True)]
    written = f"{memory.tokens[0]:,} tokens written, {memory.nbytes:,} bytes"
    return Group(
        Text(f"{written}. {CAPTION if colours else NO_COLOURS}"), Text(), Columns(drawn, padding=(1 if colours else 0, 3))
    )


def _numbers_by_size(name: str) -> list[tuple[int, str]]:
    """The sort key of a name, by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in name.split(".")]


def _labels(names: list[str]) -> list[str]:
    """The parts of the names that differ: "0" for `model.layers.0.self_attn` and so on."""
    parts = [name.split(".") for name in names]
    if len({len(name) for name in parts}) > 1 or len(names) == 1:
        return names
    differing = [index for index, column in enumerate(zip(*parts, strict=True)) if len({*column}) > 1]
    return [".".join(name[index] for index in differing) for name in parts]


def _draw(label: str, state: Tensor, colours: bool) -> Text:
    """Draw a state `[states, r, r]`, parallel states side by side; each character shows two numbers, one above the other."""
    text = Text(f"{label} {state.norm():.2f}", no_wrap=True)
    if not colours:
        return text
    numbers = rearrange(state, "n row column -> row (n column)")
    rows = (numbers / numbers.abs().max().clamp(min=1e-12)).tolist()
    for upper, lower in zip_longest(rows[::2], rows[1::2]):
        text.append("\n")
        for top, bottom in zip_longest(upper, lower or ()):
            text.append("▀", Style(color=_colour(top), bgcolor=None if bottom is None else _colour(bottom)))
    return text


def _colour(share: float) -> Color:
    """The colour of a number between -1 and 1."""
    end = POSITIVE if share > 0 else NEGATIVE
    return Color.from_rgb(*(zero + abs(share) * (full - zero) for zero, full in zip(ZERO, end, strict=True)))

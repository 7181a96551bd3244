"""Draws layer.svg: the path of one token through an attention layer with a memory."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Patch

FROZEN, TRAINED, STATE = "#e8eaed", "#d6e8fa", "#fbe3c8"
KINDS = {"frozen: the model": FROZEN, "trained: the adapter": TRAINED, "state: the memory": STATE}
HALF_WIDTH, HALF_HEIGHT, RADIUS = 1.15, 0.36, 0.16

# The centre of each box, its text, and its colour.
BOXES = {
    "x": (0.9, 3.2, "x\nhidden state, width D", FROZEN),
    "projections": (3.9, 5.0, "projections of x\nq, k, v, β: each r wide", TRAINED),
    "before": (7.4, 5.0, "S, r × r\nbefore this token", STATE),
    "after": (12.6, 5.0, "S, r × r\nafter this token", STATE),
    "read": (7.4, 3.5, "read\nρ = S q", TRAINED),
    "q_proj": (3.9, 2.1, "q_proj", FROZEN),
    "kv_proj": (3.9, 0.6, "k_proj, v_proj", FROZEN),
    "attention": (7.4, 1.3, "attention\nunchanged", FROZEN),
    "o_proj": (10.2, 1.3, "o_proj", FROZEN),
    "output": (14.3, 1.3, "output", FROZEN),
}
# The places where corrections are added.
SUMS = {"+q": (5.6, 2.1), "+o": (12.5, 1.3)}
# The start and end of each arrow, its text, and the offset of the text.
ARROWS = [
    ("x", "projections", "", (0, 0)),
    ("x", "q_proj", "", (0, 0)),
    ("x", "kv_proj", "", (0, 0)),
    ("projections", "before", "k, v, β", (0, 0.2)),
    ("projections", "read", "q", (0.1, 0.2)),
    ("before", "read", "a token reads the\nstate before it", (1.1, 0)),
    ("before", "after", "write, row by row\n(1 − β) S + β (v − S k) kᵀ", (0, 0.36)),
    ("q_proj", "+q", "", (0, 0)),
    ("+q", "attention", "", (0, 0)),
    ("kv_proj", "attention", "", (0, 0)),
    ("attention", "o_proj", "", (0, 0)),
    ("o_proj", "+o", "", (0, 0)),
    ("+o", "output", "", (0, 0)),
    ("read", "+q", "correction of\nthe queries", (-0.85, 0.1)),
    ("read", "+o", "correction of\nthe output", (1.1, 0.2)),
]


def draw(path: Path) -> None:
    """Draw the figure to a file, deterministically."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "layer", "font.size": 8}):
        figure, axes = plt.subplots(figsize=(11, 4.5))
        for x, y, text, colour in BOXES.values():
            _box(axes, x, y, text, colour)
        for x, y in SUMS.values():
            axes.add_patch(Circle((x, y), RADIUS, fc=TRAINED, ec="#555555", lw=0.9))
            axes.text(x, y, "+", ha="center", va="center")
        for start, end, text, offset in ARROWS:
            _arrow(axes, start, end, text, offset)
        patches = [Patch(fc=colour, ec="#555555", label=label) for label, colour in KINDS.items()]
        axes.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
        axes.set(xlim=(-0.4, 15.7), ylim=(0.1, 5.7), aspect="equal")
        axes.axis("off")
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    corner = (x - HALF_WIDTH, y - HALF_HEIGHT)
    box = FancyBboxPatch(corner, 2 * HALF_WIDTH, 2 * HALF_HEIGHT, "round,pad=0.06", fc=colour, ec="#555555", lw=0.9)
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", linespacing=1.4)


def _arrow(axes: Axes, start: str, end: str, text: str, offset: tuple[float, float]) -> None:
    (x0, y0), (x1, y1) = _middle(start), _middle(end)
    begin, tip = _edge(start, x1 - x0, y1 - y0), _edge(end, x0 - x1, y0 - y1)
    axes.annotate("", tip, begin, arrowprops={"arrowstyle": "-|>", "color": "#333333", "lw": 1, "shrinkA": 0, "shrinkB": 0})
    if text:
        x, y = (begin[0] + tip[0]) / 2 + offset[0], (begin[1] + tip[1]) / 2 + offset[1]
        axes.text(x, y, text, ha="center", va="center", color="#333333", fontsize=7.5, linespacing=1.3)


def _middle(name: str) -> tuple[float, float]:
    return SUMS[name] if name in SUMS else BOXES[name][:2]


def _edge(name: str, dx: float, dy: float) -> tuple[float, float]:
    """The point where a line from the centre leaves a box or a circle."""
    x, y = _middle(name)
    if name in SUMS:
        part = RADIUS / (dx**2 + dy**2) ** 0.5
    else:
        part = min((HALF_WIDTH + 0.06) / max(abs(dx), 1e-9), (HALF_HEIGHT + 0.06) / max(abs(dy), 1e-9))
    return x + part * dx, y + part * dy


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))

"""Draws writes.svg: a state before and after writes, as the delta rule makes them."""

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import Tensor

from deltamem.rule import delta_rule

R = 8
# Unit keys: the second is like the first by a cosine of 0.6, the third is orthogonal to both.
FIRST = torch.eye(R)[0]
SECOND = 0.6 * torch.eye(R)[0] + 0.8 * torch.eye(R)[3]
OTHER = torch.eye(R)[6]
# Values, each a pattern that is easy to tell.
ONE = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])
TWO = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
THREE = torch.tensor([-1.0, -1, 1, 1, 1, 1, -1, -1])
# What is written where, and the words over the state after it.
WRITES = [
    (FIRST, ONE, "a under k₁"),
    (OTHER, TWO, "b under k₂, orthogonal to k₁"),
    (SECOND, TWO, "b under k₃, like k₁ by 0.6"),
    (FIRST, THREE, "c under k₁, where a was"),
]


def states() -> list[Tensor]:
    """The state before the writes and after each: `[r, r]`. Gates are open: β = 1, no decay."""
    state, found = torch.zeros(1, 1, R, R), [torch.zeros(R, R)]
    gate = torch.ones(1, 1, 1, R)
    for key, value, _ in WRITES:
        k, v = key.view(1, 1, 1, R), value.view(1, 1, 1, R)
        _, state = delta_rule(k, k, v, keep=gate, erase=gate, write=gate, state=state, backend="reference")
        found.append(state[0, 0])
    return found


def draw(path: Path) -> None:
    """Draw the figure into a file; the same file every time."""
    found = states()
    titles = ["empty", *(words for _, _, words in WRITES)]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "writes", "font.size": 8}):
        figure, (above, below) = plt.subplots(2, len(found), figsize=(11, 4.8), layout="constrained")
        for axes, state, title in zip(above, found, titles, strict=True):
            image = _show(axes, state, title)
        for axes, (before, after) in zip(below[1:], pairwise(found), strict=True):
            _show(axes, after - before, "what this write changed")
        below[0].axis("off")
        figure.colorbar(image, ax=[*above, *below], shrink=0.6, label="number in the state")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _show(axes: Axes, state: Tensor, title: str) -> AxesImage:
    axes.set(xticks=[], yticks=[], title=title, xlabel="keys", ylabel="values")
    return axes.imshow(state.numpy(), cmap="RdBu", vmin=-2, vmax=2)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))

"""Draws what a memory learned over the time of its training: `python curve.py FIGURES.csv DRAWING.png`.

The table has one row per measurement of `measure.py`: the run, the minutes of all runs so far, and the figures.
"""

from __future__ import annotations

import csv
import itertools
import sys
from pathlib import Path

from matplotlib.figure import Figure

from deltamem.io.drawings import save_drawing

PANELS = {
    "bound": ("chats", "sgd", "qmsum"),
    "value is likeliest": ("one_fact", "four_facts", "eight_facts", "unseen_word", "slots"),
    "harm, KL in nats per token": ("prose", "prose_after_facts", "small_talk"),
}


def draw(rows: list[dict[str, str]], file: Path) -> None:
    """Draw one panel per kind of figure; a dashed line is the start of a run."""
    drawing = Figure(figsize=(5 * len(PANELS), 4), layout="constrained")
    for axes, (kind, names) in zip(drawing.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in names:
            points = [(float(row["minutes"]), float(row[name])) for row in rows if row[name]]
            axes.plot(*zip(*points, strict=True), marker="o", label=name.replace("_", " "))
        for before, after in itertools.pairwise(rows):
            if before["run"] != after["run"]:
                axes.axvline(float(before["minutes"]), color="black", linewidth=0.8, linestyle="--")
        axes.set(xlabel="minutes of training", ylabel=kind, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    save_drawing(drawing, file)


if __name__ == "__main__":
    with open(sys.argv[1], newline="") as table:
        draw([*csv.DictReader(table)], Path(sys.argv[2]))

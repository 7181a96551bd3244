"""Draws the curves of a study."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from deltamem.evaluation.recall import Setting
from deltamem.io.drawings import save_drawing
from deltamem.study.estimates import Estimate
from deltamem.study.figures import CurveFigures, VariantFigures, series
from deltamem.study.grid import last_name
from deltamem.study.measurement import Measurement

Dashes = str | tuple[int, tuple[int, int]]

CONTROLS: dict[Setting, tuple[str, Dashes]] = {
    "no_memory": ("the bare backbone", ":"),
    "zero_memory": ("an empty memory", "--"),
    "shuffled_memory": ("another's memory", "-."),
    "tail": ("last tokens of the same bytes", (0, (1, 4))),
    "full_context": ("all in its context", (0, (8, 2))),
}
OVER: dict[Literal["facts", "tokens_since"], str] = {"facts": "facts told", "tokens_since": "tokens since the facts were told"}
PANELS_IN_A_ROW = 4
# From this ratio of largest to smallest on, use a logarithmic axis.
WIDE_RANGE = 4


def draw(curves: dict[str, CurveFigures], folder: Path) -> list[Path]:
    """Draw every curve that has measurements.

    For each curve: recall against the varied setting; recall against the number of facts and against the tokens since they were
    told, if several values are measured; and capacity against the number of entries in a memory, if there is a law.

    Args:
        curves: the curves by name.
        folder: the folder for the images.

    Returns:
        The images' paths.
    """
    drawn = []
    for name, figures in curves.items():
        if not figures.variants:
            continue
        drawings = {"varied": _against_varied(figures)}
        drawings |= {over: _against(figures, over) for over in OVER if series(figures.variants[0].chances, over)}
        if figures.law is not None:
            drawings["capacity"] = _capacities(figures)
        for kind, drawing in drawings.items():
            path = folder / f"{name}_{kind}.png"
            drawing.suptitle(name if kind == "capacity" else f"{name}: mean and 95% interval over seeds", fontsize="medium")
            handles, labels = drawing.axes[0].get_legend_handles_labels()  # all panels have the same
            columns = min(len(labels), PANELS_IN_A_ROW)
            drawing.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small", handlelength=3.5)
            save_drawing(drawing, path)
            drawn.append(path)
    return drawn


def _against_varied(figures: CurveFigures) -> Figure:
    """Draw a panel per measurement: recall over the first varied setting, one line per combination of the others.

    If that setting is not a number, draw a single line with the variants side by side.
    """
    measurements = [*figures.variants[0].chances]
    drawing, panels = _panels(len(measurements))
    first, *others = figures.curve.varied or ("",)
    changes = [variant.variant.changed for variant in figures.variants]
    numeric = all(_is_number(changed.get(first)) for changed in changes)
    places = [changed[first] for changed in changes] if numeric else [*range(len(changes))]
    names = [", ".join(f"{last_name(name)}={changed[name]}" for name in others) if numeric else "" for changed in changes]
    for measurement, axes in zip(measurements, panels, strict=True):
        points = [(place, variant, measurement) for place, variant in zip(places, figures.variants, strict=True)]
        for name in dict.fromkeys(names):
            line = [point for point, of in zip(points, names, strict=True) if of == name]
            recalls = [variant.recalls[measurement, "memory"] for _, variant, _ in line]
            _line(axes, [place for place, _, _ in line], recalls, name or "its memory", joined=numeric)
        _controls(axes, points)
        _finish(axes, last_name(first) if numeric else "", measurement.described())
        if numeric:
            _number_axis(axes, places)
        else:
            labels = [variant.variant.label for variant in figures.variants]
            axes.set_xticks(places, labels, rotation=30, ha="right", fontsize="small")
    return drawing


def _against(figures: CurveFigures, over: Literal["facts", "tokens_since"]) -> Figure:
    """Draw a panel per series of measurements: recall over a number, one line per variant."""
    groups = series(figures.variants[0].chances, over)
    drawing, panels = _panels(len(groups), width=6.0)
    for group, axes in zip(groups, panels, strict=True):
        numbers = [int(getattr(measurement, over)) for measurement in group]
        for variant in figures.variants:
            _line(axes, numbers, [variant.recalls[measurement, "memory"] for measurement in group], variant.variant.label)
        _controls(axes, [(n, variant, point) for n, point in zip(numbers, group, strict=True) for variant in figures.variants])
        _finish(axes, OVER[over], group[0].described(leave_out=over))
        _number_axis(axes, numbers)
    return drawing


def _capacities(figures: CurveFigures) -> Figure:
    """Draw capacity over the number of entries in a memory, with the fitted law."""
    drawing, (axes,) = _panels(1, width=6.0)
    known = [(variant.memory_entries, variant.capacity) for variant in figures.variants if variant.capacity is not None]
    sizes, capacities = zip(*known, strict=True)
    axes.scatter(sizes, capacities, zorder=3)
    for variant in figures.variants:
        if variant.capacity is not None:
            place = (variant.memory_entries, variant.capacity)
            axes.annotate(variant.variant.label, place, (4, 4), textcoords="offset points", fontsize="x-small")
    law = figures.law
    if law is not None:
        ends = [min(sizes), max(sizes)]
        label = f"facts ∝ size^{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f}), R² = {law.r_squared:.2f}"
        axes.plot(ends, [law(end) for end in ends], color="black", linewidth=1, label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="numbers in a memory: r² · layers · states",
        ylabel="facts at half of recall above chance",
    )
    axes.grid(alpha=0.3, which="both")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter("{x:g}")
    return drawing


def _panels(count: int, width: float = 4.5) -> tuple[Figure, list[Axes]]:
    columns = min(count, PANELS_IN_A_ROW)
    rows = math.ceil(count / columns)
    drawing = Figure(figsize=(width * columns, 4 * rows), layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in panels[count:]:
        unused.remove()
    return drawing, panels[:count]


def _line(axes: Axes, places: Sequence[float], recalls: Sequence[Estimate], label: str, joined: bool = True) -> None:
    """Draw means with their intervals, and the seeds as points."""
    drawn = axes.errorbar(
        places,
        [recall.mean for recall in recalls],
        yerr=[recall.margin or 0.0 for recall in recalls],
        marker="o",
        linestyle="-" if joined else "",
        markersize=4,
        capsize=3,
        label=label,
    )
    seeds = [(place, value) for place, recall in zip(places, recalls, strict=True) for value in recall.values]
    axes.scatter([place for place, _ in seeds], [value for _, value in seeds], s=8, alpha=0.4, color=drawn.lines[0].get_color())


def _controls(axes: Axes, points: Sequence[tuple[float, VariantFigures, Measurement]]) -> None:
    """Draw chance and the controls, each averaged over all measurements at a position."""
    for setting, (label, style) in CONTROLS.items():
        by_place: dict[float, list[float]] = defaultdict(list)
        for place, variant, measurement in points:
            if (measurement, setting) in variant.recalls:
                by_place[place].append(variant.recalls[measurement, setting].mean)
        if by_place:
            axes.plot([*by_place], [*map(fmean, by_place.values())], linestyle=style, color="gray", label=label)
    _, variant, measurement = points[0]
    axes.axhline(variant.chances[measurement], color="black", linewidth=0.8, label="chance")


def _finish(axes: Axes, xlabel: str, title: str) -> None:
    axes.set(xlabel=xlabel, ylabel="recall", ylim=(-0.02, 1.05))
    axes.set_title(title, fontsize="small")
    axes.grid(alpha=0.3)


def _number_axis(axes: Axes, numbers: Sequence[float]) -> None:
    ticks = sorted({*numbers})
    positive = [number for number in ticks if number > 0]
    if positive == ticks and ticks[-1] >= WIDE_RANGE * ticks[0]:
        axes.set_xscale("log")
    elif len(positive) == len(ticks) - 1 and ticks[0] == 0 and positive:  # zero, then positive numbers
        axes.set_xscale("symlog", linthresh=positive[0])
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize="small")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Draws the figures of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from deltamem.benchmark.report import PHASES
from deltamem.io.drawings import save_drawing


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the measurements to an image file, with one panel per kind."""
    panels: list[Callable[[Axes], None]] = []
    if "prompts" in figures:
        panels.append(partial(_ratios, figures["prompts"]))
    if "written" in figures:
        panels.append(partial(_written, figures["written"]))
    if "rule" in figures:
        panels += [partial(_rule, figures["rule"], direction) for direction in ("forward", "backward")]
    drawing = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for panel, axes in zip(panels, drawing.subplots(1, len(panels), squeeze=False)[0], strict=True):
        panel(axes)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend()
    drawing.suptitle(_title(figures), fontsize="medium")
    save_drawing(drawing, path)


def _title(figures: dict[str, Any]) -> str:
    model = f"{figures['model']['name']}, {figures['dtype']}, " if "model" in figures else ""
    return f"{model}adapter {figures['adapter']['name']}\n{figures['machine']}"


def _ratios(prompts: Sequence[dict[str, Any]], axes: Axes) -> None:
    """Plot the ratio of adapted to bare over the prompt's length, with the median's interval."""
    for key, name in PHASES.items():
        rows = [(prompt["tokens"], prompt[key]) for prompt in prompts if key in prompt]
        if rows:
            ratios = [row["ratio"] for _, row in rows]
            lower, upper = zip(*(row["ratio_interval"] for _, row in rows), strict=True)
            errors = [
                [ratio - low for ratio, low in zip(ratios, lower, strict=True)],
                [high - ratio for ratio, high in zip(ratios, upper, strict=True)],
            ]
            axes.errorbar([tokens for tokens, _ in rows], ratios, yerr=errors, marker="o", capsize=4, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(
        xscale="log",
        xticks=[prompt["tokens"] for prompt in prompts],
        xlabel="tokens of the prompt",
        ylabel="time, adapted / bare",
        title="Against the bare backbone",
    )


def _written(rows: Sequence[dict[str, Any]], axes: Axes) -> None:
    """Plot the time per token over the number of tokens written to the memory."""
    tokens = [row["tokens"] for row in rows]
    for key, name in (("base", "bare"), ("adapted", "adapted")):
        axes.plot(tokens, [row[f"{key}_ms"] for row in rows], marker="o", label=name)
        lower, upper = zip(*(row[f"{key}_ms_quartiles"] for row in rows), strict=True)
        axes.fill_between(tokens, lower, upper, alpha=0.2)
    axes.set(xscale="log", xticks=tokens, xlabel="tokens written to the memory", ylabel="ms per token", title="Decoding")
    axes.set_ylim(bottom=0)


def _rule(rows: Sequence[dict[str, Any]], direction: str, axes: Axes) -> None:
    """Plot the time of each backend over the length."""
    lengths = sorted({row["tokens"] for row in rows})
    for backend in dict.fromkeys(row["backend"] for row in rows):
        of_backend = [row for row in rows if row["backend"] == backend]
        times = [row[f"{direction}_ms"] for row in of_backend]
        axes.plot([row["tokens"] for row in of_backend], times, marker="o", label=backend)
    axes.set(xscale="log", xticks=lengths, yscale="log", xlabel="tokens", ylabel="ms", title=f"The rule alone, {direction}")

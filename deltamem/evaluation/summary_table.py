"""Formats the figures of an evaluation, and prints them as a table in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from deltamem.evaluation.off_task import BARE
from deltamem.evaluation.summary import FULL, SHUFFLED

# Column titles of an entry's comparisons.
COMPARED = {
    "difference": f"against {BARE}",
    "shuffled_difference": f"against {SHUFFLED}",
    "ratio": f"times {BARE}",
    "full_ratio": f"times {FULL}",
}
WIDE = 1000  # line width if the output is not a terminal
Show = Callable[..., str]  # formats a figure, optionally with a sign


def print_evaluation(figures: Mapping[str, Any]) -> None:
    """Print what `command.run` returns: a table, and what was found."""
    print_summary(figures["results"])
    for finding in figures["findings"]:
        Console(highlight=False, soft_wrap=True).print(finding, markup=False)


def print_summary(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print the entries of `summarise_seeds` as one table."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for header in ("task", "setting", "metric"):
        table.add_column(header, no_wrap=True)
    there = [name for name in COMPARED if name == "difference" or any(name in entry for entry in entries)]
    counted = ["questions", *(["seeds"] if any(entry["seeds"] > 1 for entry in entries) else [])]
    for header in (*counted, "value (95%)", *(f"{COMPARED[name]} (95%)" for name in there)):
        table.add_column(header, justify="right")
    for entry in entries:
        task = entry["task"] if entry["group"] is None else f"{entry['task']}: {entry['group']}"
        cells = [shown(entry, name) for name in ("value", *there)]
        table.add_row(task, entry["setting"], entry["metric"], *(str(entry[name]) for name in counted), *cells)
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def shown(entry: Mapping[str, Any], name: str) -> str:
    """Format a figure of an entry with its interval; empty if the entry does not have it.

    Args:
        entry: an entry of `summarise_seeds`.
        name: `value`, `difference`, `shuffled_difference`, `ratio` or `full_ratio`.
    """
    if name not in entry:
        return ""
    show: Show = times if name.endswith("ratio") else _percent if entry["share"] else _number
    if name.endswith("difference"):
        show = partial(show, sign="+")
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    return f"{show(entry[name])} ({show(entry[low])} to {show(entry[high])})"


def _percent(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1%}"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}"


def times(value: float) -> str:
    """Format a ratio."""
    return f"{value:.2f}×"

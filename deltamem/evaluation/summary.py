"""What an evaluation's rows come to: a figure for every task, setting and metric, with its interval and what is lost or won."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from deltamem.evaluation.intervals import Interval, Numbers, bootstrap, paired_bootstrap, wilson
from deltamem.evaluation.off_task import BARE
from deltamem.evaluation.task import Metric, Row, Task

Show = Callable[..., str]  # a figure, perhaps with its sign


def summarise(task: Task, rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """The figures of one task.

    Args:
        task: the task.
        rows: by setting; those of all settings are of the same questions.

    Returns:
        An entry for each setting and metric, of all questions (`group` None) and, where there are several groups of them, of
        each: `value`, its 95% interval `low` to `high`, and against the bare backbone, if it was asked, `difference` with its
        paired interval `difference_low` to `difference_high`.
    """
    groups = [*dict.fromkeys(row.get("group") for several in rows.values() for row in several)]
    entries = _entries(task, None, rows)
    if len(groups) > 1:
        for group in groups:
            of_group = {setting: [row for row in several if row["group"] == group] for setting, several in rows.items()}
            entries += _entries(task, group, of_group)
    return entries


def print_summary(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print what `summarise` returned as one table."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for header in ("task", "setting", "metric"):
        table.add_column(header, no_wrap=True)
    for header in ("questions", "value (95%)", f"against {BARE} (95%)"):
        table.add_column(header, justify="right")
    for entry in entries:
        task = entry["task"] if entry["group"] is None else f"{entry['task']}: {entry['group']}"
        show: Show = _percent if entry["share"] else _number
        table.add_row(task, entry["setting"], entry["metric"], str(entry["questions"]), *_cells(entry, show))
    Console().print(table)


def _entries(task: Task, group: str | None, rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    return [
        {"task": task.name, "group": group, "setting": setting, "metric": name, **_figures(metric, rows, setting)}
        for setting in rows
        for name, metric in task.metrics.items()
    ]


def _figures(metric: Metric, rows: Mapping[str, Sequence[Row]], setting: str) -> dict[str, Any]:
    values = _values(metric, rows[setting])
    low, high = _interval(metric, values)
    figures = {
        "questions": len(values),
        "share": metric.share,
        "value": float(metric.aggregate(values)),
        "low": low,
        "high": high,
    }
    if BARE not in rows or setting == BARE:
        return figures
    bare = _values(metric, rows[BARE])
    low, high = paired_bootstrap(values, bare, metric.aggregate)
    difference = figures["value"] - float(metric.aggregate(bare))
    return {**figures, "difference": difference, "difference_low": low, "difference_high": high}


def _interval(metric: Metric, values: Numbers) -> Interval:
    return wilson(int(values.sum()), len(values)) if metric.share else bootstrap(values, metric.aggregate)


def _values(metric: Metric, rows: Sequence[Row]) -> Numbers:
    return np.array([row[metric.of] for row in rows], dtype=np.float64)


def _cells(entry: Mapping[str, Any], show: Show) -> list[str]:
    cells = [_shown(entry, show, "value", "low", "high")]
    if "difference" in entry:
        cells.append(_shown(entry, partial(show, sign="+"), "difference", "difference_low", "difference_high"))
    return cells


def _shown(entry: Mapping[str, Any], show: Callable[[float], str], *names: str) -> str:
    value, low, high = (show(entry[name]) for name in names)
    return f"{value} ({low} to {high})"


def _percent(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1%}"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}"

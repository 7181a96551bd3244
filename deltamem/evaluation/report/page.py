"""Renders the page of `deltamem report`: one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltamem.evaluation.findings import findings
from deltamem.evaluation.off_task import BARE
from deltamem.evaluation.report.average import Average, averages
from deltamem.evaluation.report.examples import Examples, examples
from deltamem.evaluation.report.figures import LOG_LIKELIHOOD, TaskFigures
from deltamem.evaluation.report.memories import HeatMap, heat_map
from deltamem.evaluation.report.results import TaskResults, in_order, read_results
from deltamem.evaluation.settings import EXPLAINED
from deltamem.evaluation.summary import FULL
from deltamem.evaluation.summary_table import COMPARED, shown
from deltamem.html.page import render
from deltamem.io.files import write_atomically
from deltamem.io.shareable import shareable


@dataclass(frozen=True)
class Bar:
    """A figure, drawn as a bar with its interval.

    Args:
        entry: an entry of the summary.
        largest: the value at full length.
    """

    entry: Mapping[str, Any]
    largest: float

    @property
    def text(self) -> str:
        """The figure with its interval, as text."""
        return shown(self.entry, "value")

    @property
    def lengths(self) -> dict[str, float]:
        """The lengths of the figure and of its interval's ends, from 0 to 1."""
        return {name: min(max(self.entry[name] / self.largest, 0.0), 1.0) for name in ("value", "low", "high")}


@dataclass(frozen=True)
class TaskSection:
    """The page's section on one task."""

    figures: TaskFigures
    options: dict[str, str]
    memories: dict[str, HeatMap]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.figures.results.name

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.figures.results.seeds)

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The entries over all questions by metric, including metrics derived from several settings."""
        return self._by_metric(None)

    @property
    def findings(self) -> list[str]:
        """What the figures show, in sentences."""
        return findings(self.figures.entries)

    @property
    def groups(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """The entries by kind of question and metric."""
        kinds = dict.fromkeys(entry["group"] for entry in self.figures.entries)
        return {group: self._by_metric(group) for group in kinds if group is not None}

    @property
    def group_bars(self) -> dict[str, list[Bar]]:
        """The main metric by kind of question, on a common scale."""
        main = self.figures.main
        bars = bars_of([entry for entry in self.figures.entries if entry["group"] is not None and entry["metric"] == main])
        return {group: found for group in self.groups if (found := [bar for bar in bars if bar.entry["group"] == group])}

    @cached_property
    def examples(self) -> list[Examples]:
        """The questions that the memory helped or hurt most, for the first seed."""
        likelihood = [LOG_LIKELIHOOD] if LOG_LIKELIHOOD in self.figures.metrics else []
        main = [] if self.figures.main is None else [self.figures.main]
        return examples(self.figures.results.seeds[0], [*dict.fromkeys(main + likelihood)], likelihood)

    def _by_metric(self, group: str | None) -> dict[str, list[dict[str, Any]]]:
        of_group = [entry for entry in self.figures.entries if entry["group"] == group]
        names = dict.fromkeys(entry["metric"] for entry in of_group)
        return {name: [entry for entry in of_group if entry["metric"] == name] for name in names}


def bars_of(entries: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Create bars on a common scale; empty if a figure is below 0."""
    if any(entry["low"] < 0 for entry in entries):
        return []
    largest = max((entry["high"] for entry in entries), default=0.0) or 1.0
    return [Bar(entry, largest) for entry in entries]


def write_report(results: Path, page: Path) -> None:
    """Write the page.

    Args:
        results: the folder written by `deltamem eval --output`.
        page: the file, replaced atomically.

    Raises:
        ValueError, OSError: there are no results, they cannot be read, or the page cannot be written; the message says where.
    """
    tasks = read_results(results)
    shared, own = _options(tasks)
    sections = [TaskSection(TaskFigures(task), own[task.name], _heat_maps(task)) for task in tasks]
    text = render(
        "deltamem.evaluation.report",
        f"Evaluation: {results.resolve().name}",
        shared,
        [note for task in tasks for note in task.notes],
        tasks=sections,
        overview=_overview(sections),
        averages={baseline: found for baseline in (BARE, FULL) if (found := _averages(sections, baseline))},
        names=_names,
        in_order=in_order,
        bars_of=bars_of,
        shown=shown,
        compared=COMPARED,
        bare=BARE,
        settings=in_order({entry["setting"] for task in sections for entry in task.figures.entries}),
        explained=EXPLAINED,
        full=FULL,
    )
    write_atomically(page, text.encode("utf-8"), private=False)


def _options(tasks: Sequence[TaskResults]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The options shared by all tasks, and each task's own; options that were not given are left out."""
    of_tasks = {task.name: {name: _text(value) for name, value in task.options.items() if value is not None} for task in tasks}
    first = of_tasks[tasks[0].name]
    shared = {name: text for name, text in first.items() if all(options.get(name) == text for options in of_tasks.values())}
    own = {task: {name: text for name, text in options.items() if name not in shared} for task, options in of_tasks.items()}
    return shared, own


def _text(value: Any) -> str:
    return shareable(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _heat_maps(task: TaskResults) -> dict[str, HeatMap]:
    return {history: heat_map(files) for history, files in task.memories.items()}


def _overview(sections: Sequence[TaskSection]) -> dict[str, dict[str, dict[str, Any]]]:
    """The entries of the main metrics, by task and setting."""
    return {
        section.name: {entry["setting"]: entry for entry in section.tables[section.figures.main]}
        for section in sections
        if section.figures.main is not None
    }


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns that occur in the rows, in order."""
    return [*dict.fromkeys(name for row in rows for name in row)]


def _averages(sections: Sequence[TaskSection], baseline: str) -> list[Average]:
    return averages({section.name: section.figures.ratios(baseline, seed) for seed, section in enumerate(sections)})

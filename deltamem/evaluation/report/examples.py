"""Finds the questions that a memory helped with most, and those that it hurt most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltamem.evaluation.off_task import BARE
from deltamem.evaluation.task import Row

MEMORY = "memory"
MOST = 5
LONGEST = 600  # characters shown of a text


@dataclass(frozen=True)
class Example:
    """A question answered with and without a memory.

    Args:
        group: its kind, if any.
        question: its text.
        golds: the right answers.
        predictions: the answers with and without a memory.
        figures: the values with and without a memory, by metric.
    """

    group: str | None
    question: str
    golds: tuple[str, ...]
    predictions: tuple[str, str]
    figures: dict[str, tuple[float, float]]

    def won(self, metric: str) -> float:
        """How much higher a metric is with a memory than without."""
        with_memory, without = self.figures[metric]
        return with_memory - without


@dataclass(frozen=True)
class Examples:
    """The questions for which a memory changed a metric most.

    Args:
        metric: the metric.
        helped: those with the largest gain, in descending order.
        hurt: those with the largest loss, in descending order.
    """

    metric: str
    helped: list[Example]
    hurt: list[Example]


def examples(rows: Mapping[str, Sequence[Row]], metrics: Sequence[str], ties: Sequence[str]) -> list[Examples]:
    """Find, for each metric, the questions with the largest differences between the memory and the bare backbone.

    Args:
        rows: by setting, for the same questions in the same order.
        metrics: the metrics to compare; higher is better.
        ties: metrics that break ties.

    Returns:
        One entry for each metric in which some question differs; empty if the rows lack one of the two settings or the
        questions' texts.
    """
    if MEMORY not in rows or BARE not in rows or "question" not in rows[BARE][0]:
        return []
    pairs = [_example(*pair, [*metrics, *ties]) for pair in zip(rows[MEMORY], rows[BARE], strict=True)]
    found = [_most(pairs, metric, ties) for metric in metrics]
    return [several for several in found if several.helped or several.hurt]


def _example(with_memory: Row, without: Row, metrics: Sequence[str]) -> Example:
    return Example(
        with_memory.get("group"),
        _short(with_memory["question"]),
        tuple(_short(gold) for gold in with_memory.get("answers") or [with_memory.get("answer", "")]),
        (_said(with_memory), _said(without)),
        {metric: (float(with_memory[metric]), float(without[metric])) for metric in metrics},
    )


def _most(pairs: Sequence[Example], metric: str, ties: Sequence[str]) -> Examples:
    ordered = sorted(pairs, key=lambda pair: [pair.won(name) for name in (metric, *ties)])
    return Examples(
        metric,
        helped=[pair for pair in ordered[::-1][:MOST] if pair.won(metric) > 0],
        hurt=[pair for pair in ordered[:MOST] if pair.won(metric) < 0],
    )


def _said(row: Row) -> str:
    return _short(row.get("prediction", row.get("choice", "")))


def _short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"

"""Questions that a memory helped with most, and those that it hurt most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltamem.evaluation.off_task import BARE
from deltamem.evaluation.task import Row

MEMORY = "memory"
MOST = 5
LONGEST = 600  # characters of a text that are shown


@dataclass(frozen=True)
class Example:
    """A question, answered with a memory and without.

    Args:
        group: its kind, if there are kinds.
        question: its text.
        golds: the right answers.
        predictions: what was said, with a memory and without.
        figures: with a memory and without, by metric.
    """

    group: str | None
    question: str
    golds: tuple[str, ...]
    predictions: tuple[str, str]
    figures: dict[str, tuple[float, float]]

    def won(self, metric: str) -> float:
        """How much larger a figure is with a memory than without."""
        with_memory, without = self.figures[metric]
        return with_memory - without


@dataclass(frozen=True)
class Examples:
    """Where a memory changed a figure most.

    Args:
        metric: the figure.
        helped: where it won most, the most first.
        hurt: where it lost most.
    """

    metric: str
    helped: list[Example]
    hurt: list[Example]


def examples(rows: Mapping[str, Sequence[Row]], metrics: Sequence[str], ties: Sequence[str]) -> list[Examples]:
    """For each metric the questions whose figures differ most between the memory and the bare backbone without context.

    Args:
        rows: by setting; of the same questions in the same order.
        metrics: to look at; larger is better.
        ties: metrics that order questions that are alike in the first.

    Returns:
        Nothing for metrics in which none differ, and nothing at all where the rows do not have both settings, or no texts.
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

"""Defines evaluation tasks, their options and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deltamem.evaluation.subject import Subject
from deltamem.intervals import Aggregate, Numbers

Row = dict[str, Any]  # the result of one question under one setting


@dataclass(frozen=True)
class Options:
    """The options of `deltamem eval` that tasks use; the command's help describes them."""

    data: Path | None = None
    data_dir: Path | None = None
    limit: int | None = None
    facts: tuple[int, ...] = (1, 4)
    split: str = "held_out"
    tokens_since: tuple[int, ...] = (0,)
    context_tokens: tuple[int, ...] = (1000,)
    source: tuple[str, ...] = ()
    kind: str | None = None
    updates: float = 0.0
    first_person: float = 0.0
    episodes: int = 150
    greedy: bool = False
    max_new_tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Derived:
    """A figure computed from a metric's values under several settings.

    Args:
        settings: the settings it needs; it is reported under the first.
        of: computes it from the metric's values by setting, all of one shape; None if it would be meaningless.
        share: whether it is a share, shown as a percentage.
    """

    settings: tuple[str, ...]
    of: Callable[[Mapping[str, Numbers]], Numbers | None]
    share: bool = False


@dataclass(frozen=True)
class Metric:
    """A figure over all questions.

    Args:
        of: the rows' entry that it aggregates.
        aggregate: aggregates over the last axis.
        share: whether it is the share of questions answered correctly.
        derived: figures derived from several settings, by name.
    """

    of: str
    aggregate: Aggregate
    share: bool = False
    derived: Mapping[str, Derived] = field(default_factory=dict)


def share(of: str) -> Metric:
    """The share of questions whose entry is 1 (the others' is 0)."""
    return Metric(of, mean, share=True)


def perplexity(of: str) -> Metric:
    """The exponential of the negative mean log-likelihood."""
    return Metric(of, lambda values: np.exp(-mean(values)))


def mean(values: Numbers) -> Numbers:
    """The mean over the questions, the last axis."""
    result: Numbers = values.mean(axis=-1)
    return result


class Task(Protocol):
    """Questions to be asked under several settings."""

    @property
    def name(self) -> str:
        """The name of the task and its results: letters, digits, "_" and "-"."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics, by name."""

    @property
    def identity(self) -> dict[str, Any]:
        """The options that the results depend on; other options make other results."""

    def __len__(self) -> int:
        """Number of questions."""

    def settings(self, subject: Subject) -> tuple[str, ...]:
        """The settings that the task supports for a model."""

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """Do everything that needs a tokenizer, before anything is asked under these settings.

        Raises:
            ValueError: a text does not fit into the model's window.
        """

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """Ask the questions at `places` under the settings; return rows by setting.

        A row's optional "group" is its question's kind, which is summarised separately.
        """

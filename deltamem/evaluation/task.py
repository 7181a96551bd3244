"""What an evaluation's task is, and what it measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deltamem.evaluation.subject import Subject
from deltamem.intervals import Aggregate, Numbers

Row = dict[str, Any]  # what is kept of one question under one setting


@dataclass(frozen=True)
class Options:
    """The options of `deltamem eval` that its tasks look at; the command describes them."""

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
    episodes: int = 150
    greedy: bool = False
    max_new_tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Derived:
    """A figure that a metric makes under several settings together.

    Args:
        settings: which; the figure says something about the first of them.
        of: makes it of the metric's values by setting, of one shape each; None where it would say nothing.
        share: whether it is a share, shown in percent.
    """

    settings: tuple[str, ...]
    of: Callable[[Mapping[str, Numbers]], Numbers | None]
    share: bool = False


@dataclass(frozen=True)
class Metric:
    """A figure of all questions.

    Args:
        of: the entry of the rows that it is made of.
        aggregate: makes it, over the last axis.
        share: whether it is the share of questions answered right.
        derived: figures of several settings, by name.
    """

    of: str
    aggregate: Aggregate
    share: bool = False
    derived: Mapping[str, Derived] = field(default_factory=dict)


def share(of: str) -> Metric:
    """The share of questions whose entry is 1, not 0."""
    return Metric(of, mean, share=True)


def perplexity(of: str) -> Metric:
    """From log-likelihoods: exp of their negative mean."""
    return Metric(of, lambda values: np.exp(-mean(values)))


def mean(values: Numbers) -> Numbers:
    """Over the questions, the last axis."""
    result: Numbers = values.mean(axis=-1)
    return result


class Task(Protocol):
    """Questions, asked under several settings."""

    @property
    def name(self) -> str:
        """Names the task and its results; letters, digits, "_" and "-"."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """What is measured, by name."""

    @property
    def identity(self) -> dict[str, Any]:
        """The options that its results depend on: with others, they are other results."""

    def __len__(self) -> int:
        """Number of questions."""

    def settings(self, subject: Subject) -> tuple[str, ...]:
        """The settings that a model can be asked under."""

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """Do what needs a tokenizer, before anything is asked under these settings.

        Raises:
            ValueError: texts that do not fit into the model's window.
        """

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """Ask some of the questions, given by their places, under settings: rows by setting.

        A row's optional "group" is the kind of its question, to be summed up separately.
        """

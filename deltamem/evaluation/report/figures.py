"""Infers a task's metrics from its rows, and aggregates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltamem.evaluation import continuation, harm
from deltamem.evaluation.lm_eval.task import weighted
from deltamem.evaluation.report.average import Ratio
from deltamem.evaluation.report.results import TaskResults
from deltamem.evaluation.summary import PERPLEXITY, SMALLER_IS_BETTER, mean_over_seeds, resampled, summarise_seeds
from deltamem.evaluation.task import Metric, mean, perplexity, share
from deltamem.intervals import ratio

# Numbers in a row that are not measurements: the index of the question, and that of the right choice.
NO_FIGURES = ("index", "gold")
LOG_LIKELIHOOD = "log_likelihood"
# Metrics that cannot be inferred from the rows, by task.
KNOWN = {continuation.NAME: continuation.METRICS, harm.NAME: harm.METRICS}
# Metrics shared by many tasks, or for which smaller is better; any other metric says more about a task.
GENERAL = ("gold_first", LOG_LIKELIHOOD, PERPLEXITY)


@dataclass(frozen=True)
class TaskFigures:
    """A task's figures.

    Args:
        results: the task's saved results.
    """

    results: TaskResults

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that all rows have values for, those specific to the task first."""
        rows = [row for seed in self.results.seeds for several in seed.values() for row in several]
        found = {name: _metric(name, [row.get(name) for row in rows]) for name in rows[0] if name not in NO_FIGURES}
        known = KNOWN.get(self.results.name, {})
        there = {name: known.get(name, metric) for name, metric in found.items() if metric is not None}
        return dict(sorted(there.items(), key=lambda item: GENERAL.index(item[0]) if item[0] in GENERAL else -1))

    @property
    def main(self) -> str | None:
        """The metric that represents the task, if any: one number per question, larger is better."""
        row = next(iter(self.results.seeds[0].values()))[0]
        return next((name for name in self.metrics if name not in SMALLER_IS_BETTER and not isinstance(row[name], list)), None)

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """The task's summary, as `summarise_seeds` returns it."""
        return summarise_seeds(self.results.name, self.metrics, self.results.seeds)

    def ratios(self, baseline: str, seed: int) -> dict[str, Ratio]:
        """The main metric relative to the baseline's, by setting; empty if the baseline is not reliably above 0."""
        if self.main is None or baseline not in self.results.seeds[0]:
            return {}
        metric, seeds = self.metrics[self.main], self.results.seeds
        values, drawn = mean_over_seeds(metric, seeds), resampled(metric, seeds, seed)
        ratios = {setting: ratio(drawn[setting], drawn[baseline]) for setting in drawn if setting != baseline}
        return {
            setting: Ratio(values[setting] / values[baseline], several)
            for setting, several in ratios.items()
            if several is not None
        }


def _metric(name: str, values: Sequence[Any]) -> Metric | None:
    """The metric for a row's entries of one name: a share if all are 0 or 1, otherwise a mean, possibly weighted."""
    if all(isinstance(value, int | float) for value in values):
        if name == PERPLEXITY:
            return perplexity(name)
        return share(name) if all(value in (0, 1) for value in values) else Metric(name, mean)
    return weighted(name) if all(map(_is_weighted, values)) else None


def _is_weighted(value: Any) -> bool:
    """Whether a value is a pair of a sum and its weight, such as a prompt's instructions followed, of how many."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(number, int | float) for number in value)
        and 0 <= value[0] <= value[1] > 0
    )

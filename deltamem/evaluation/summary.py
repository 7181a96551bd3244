"""Summarises an evaluation: a figure for every task, setting and metric, with its interval and its comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deltamem.evaluation.off_task import BARE
from deltamem.evaluation.task import Metric, Row
from deltamem.intervals import Interval, Numbers, interval, ratio, resample, wilson

MEMORY, SHUFFLED = "memory", "shuffled"  # the memory of the question's history, and another's
PERPLEXITY = "perplexity"  # lm-evaluation-harness's; rows hold log-likelihoods under this name
SMALLER_IS_BETTER = (PERPLEXITY, "nats", "kl", "changed", "mixed_up")  # metrics
FULL = "full"  # the bare backbone with the whole history in its prompt
Rows = Mapping[str, Sequence[Row]]  # by setting; all settings have the same questions in the same order


def summarise_seeds(name: str, metrics: Mapping[str, Metric], seeds: Sequence[Rows]) -> list[dict[str, Any]]:
    """Compute the figures of one task, as means over its seeds.

    Args:
        name: the task's name.
        metrics: its metrics.
        seeds: the rows of each seed; all have the same settings.

    Returns:
        An entry for each setting and metric, over all questions (`group` None) and, if there are several groups, for each
        group: `questions`, the number of distinct questions; `seeds`; `value` with its 95% interval `low` to `high`. If the
        settings were run, it also has `difference` and `ratio` to the bare backbone, for the memory `shuffled_difference` to
        another's memory, and `full_ratio` to the backbone with everything in the prompt, all with paired intervals:
        `difference_low`, `difference_high`, and so on. There is no ratio to a figure that is not reliably above 0. Then follow
        entries for the figures that a metric derives from several settings, if all of these were run. Intervals are
        bootstrapped over questions and, with several seeds, over seeds as well (see `resample`); for a share with one seed,
        they are Wilson's.

    Raises:
        ValueError: settings of one seed have different questions, or seeds have different settings.
    """
    _check(name, seeds)
    groups = [*dict.fromkeys(row.get("group") for rows in seeds for several in rows.values() for row in several)]
    parts = [(None, seeds)]
    if len(groups) > 1:
        parts += [(group, [_of_group(rows, group) for rows in seeds]) for group in groups]
    return [
        {"task": name, "group": group, **entry}
        for group, part in parts
        for metric_name, metric in metrics.items()
        for entry in _entries(metric_name, metric, [rows for rows in part if _asked(rows)])
    ]


def resampled(metric: Metric, seeds: Sequence[Rows], seed: int = 0) -> dict[str, Numbers]:
    """Resample a metric by setting, `[RESAMPLES]` each, paired across settings; see `resample`."""
    values = [np.stack([_values(metric, several) for several in rows.values()]) for rows in seeds]
    return dict(zip(seeds[0], resample(values, metric.aggregate, _same_questions(seeds), seed), strict=True))


def mean_over_seeds(metric: Metric, seeds: Sequence[Rows]) -> dict[str, float]:
    """A metric's mean over the seeds, by setting."""
    return {
        setting: float(np.mean([metric.aggregate(_values(metric, rows[setting])) for rows in seeds])) for setting in seeds[0]
    }


def _entries(name: str, metric: Metric, seeds: Sequence[Rows]) -> list[dict[str, Any]]:
    """The entries of a metric and of the figures derived from it."""
    values, drawn = mean_over_seeds(metric, seeds), resampled(metric, seeds)
    questions = [len(rows[next(iter(rows))]) for rows in seeds]
    counted = {"questions": questions[0] if _same_questions(seeds) else sum(questions), "seeds": len(seeds)}
    figures = [*_figures(name, metric, seeds, values, drawn), *_derived(metric, values, drawn)]
    return [{**entry, **counted} for entry in figures]


def _derived(metric: Metric, values: Mapping[str, float], drawn: Mapping[str, Numbers]) -> Iterator[dict[str, Any]]:
    """The figures that a metric derives from several settings."""
    for name, derived in metric.derived.items():
        if not {*derived.settings} <= {*values}:
            continue
        value, resamples = derived.of({setting: np.array(value) for setting, value in values.items()}), derived.of(drawn)
        if value is not None and resamples is not None:
            low, high = interval(resamples)
            named = {"setting": derived.settings[0], "metric": name, "share": derived.share}
            yield {**named, "value": float(value), "low": low, "high": high}


def _figures(
    name: str, metric: Metric, seeds: Sequence[Rows], values: Mapping[str, float], drawn: Mapping[str, Numbers]
) -> Iterator[dict[str, Any]]:
    """The figures of a metric by setting."""
    for setting, value in values.items():
        low, high = _interval(metric, [rows[setting] for rows in seeds], drawn[setting])
        figures: dict[str, Any] = {"setting": setting, "metric": name, "share": metric.share}
        figures |= {"value": value, "low": low, "high": high}
        differences = {"difference": BARE, **({"shuffled_difference": SHUFFLED} if setting == MEMORY else {})}
        for compared, other in differences.items():
            if other in values and other != setting:
                figures |= _with_interval(compared, value - values[other], drawn[setting] - drawn[other])
        for compared, other in (("ratio", BARE), ("full_ratio", FULL)):
            ratios = ratio(drawn[setting], drawn[other]) if other in values and setting != other else None
            if ratios is not None:
                figures |= _with_interval(compared, value / values[other], ratios)
        yield figures


def _with_interval(name: str, value: float, drawn: Numbers) -> dict[str, float]:
    low, high = interval(drawn)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _interval(metric: Metric, seeds: Sequence[Sequence[Row]], drawn: Numbers) -> Interval:
    if metric.share and len(seeds) == 1:
        values = _values(metric, seeds[0])
        return wilson(int(values.sum()), len(values))
    return interval(drawn)


def _values(metric: Metric, rows: Sequence[Row]) -> Numbers:
    return np.array([row[metric.of] for row in rows], dtype=np.float64)


def _of_group(rows: Rows, group: Any) -> Rows:
    return {setting: [row for row in several if row.get("group") == group] for setting, several in rows.items()}


def _asked(rows: Rows) -> bool:
    return any(rows.values())


def _same_questions(seeds: Sequence[Rows]) -> bool:
    """Whether all seeds have the same questions."""
    first = _questions(next(iter(seeds[0].values())))
    return all(_questions(several) == first for rows in seeds for several in rows.values())


def _questions(rows: Sequence[Row]) -> list[tuple[Any, Any]]:
    return [(row["index"], row.get("question")) for row in rows]


def _check(name: str, seeds: Sequence[Rows]) -> None:
    for rows in seeds:
        if [*rows] != [*seeds[0]]:
            raise ValueError(
                f"the seeds of {name} were asked under other settings: {', '.join(seeds[0])}, and {', '.join(rows)}; "
                "ask all of them under the same"
            )
        counts = {setting: len(several) for setting, several in rows.items()}
        if len({*counts.values()}) > 1:
            of_each = ", ".join(f"{setting} {count}" for setting, count in counts.items())
            raise ValueError(f"the settings of {name} have different numbers of questions: {of_each}; ask the same under each")

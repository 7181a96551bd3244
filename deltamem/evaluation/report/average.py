"""The average over tasks, and how much each task contributes to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltamem.evaluation.leave_one_out import leave_one_out
from deltamem.evaluation.summary_table import times
from deltamem.intervals import Numbers, interval


@dataclass(frozen=True)
class Ratio:
    """A figure as a multiple of another.

    Args:
        value: the ratio.
        drawn: its resamples, `[RESAMPLES]`.
    """

    value: float
    drawn: Numbers

    def __str__(self) -> str:
        low, high = interval(self.drawn)
        return f"{times(self.value)} ({times(low)} to {times(high)})"


@dataclass(frozen=True)
class Average:
    """The mean of the ratios of several tasks under one setting.

    Args:
        setting: the setting.
        mean: the mean over all tasks that have a ratio.
        without: the mean over the other tasks, by the task left out.
    """

    setting: str
    mean: Ratio
    without: dict[str, Ratio]


def averages(ratios: Mapping[str, Mapping[str, Ratio]]) -> list[Average]:
    """Compute the averages of all settings for which at least two tasks have a ratio.

    Args:
        ratios: by task and setting; each task is resampled independently.
    """
    settings = dict.fromkeys(setting for of_task in ratios.values() for setting in of_task)
    by_setting = {
        setting: {task: of_task[setting] for task, of_task in ratios.items() if setting in of_task} for setting in settings
    }
    return [_average(setting, of_tasks) for setting, of_tasks in by_setting.items() if len(of_tasks) > 1]


def _average(setting: str, ratios: Mapping[str, Ratio]) -> Average:
    mean, without = leave_one_out({task: ratio.value for task, ratio in ratios.items()})
    drawn, drawn_without = leave_one_out({task: ratio.drawn for task, ratio in ratios.items()})
    return Average(
        setting, Ratio(float(mean), drawn), {task: Ratio(float(without[task]), drawn_without[task]) for task in ratios}
    )

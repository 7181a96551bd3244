"""Estimates from single runs: means with intervals, capacities, and the power law of capacity over memory size."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        values: one value per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def margin(self) -> float | None:
        """Half the width of the mean's 95% interval, by Student's t; None for a single value."""
        count = len(self.values)
        if count < 2:
            return None
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * statistics.stdev(self.values) / math.sqrt(count))

    def __str__(self) -> str:
        """Format as percentages: "93 ± 4"."""
        margin = "" if self.margin is None else f" ± {100 * self.margin:.0f}"
        return f"{100 * self.mean:.0f}{margin}"


def above_chance(recall: float, chance: float) -> float:
    """Recall corrected for guessing: 0 at chance, 1 if everything is right."""
    return (recall - chance) / (1 - chance)


def capacity(recalls: Mapping[int, float], chance: float) -> float | None:
    """The number of facts at which recall above chance falls to one half.

    Between the two numbers of facts where it first crosses one half, recall is interpolated linearly in the logarithm of the
    number.

    Args:
        recalls: recall by number of facts.
        chance: the recall of guessing.

    Returns:
        The number of facts; None if recall starts at or below one half, or never falls that far.
    """
    points = [(facts, above_chance(recalls[facts], chance)) for facts in sorted(recalls)]
    for (fewer, above), (more, below) in itertools.pairwise(points):
        if above > 0.5 >= below:
            share = (above - 0.5) / (above - below)
            return float(fewer * (more / fewer) ** share)
        if above <= 0.5:
            return None
    return None


@dataclass(frozen=True)
class PowerLaw:
    """The law `y = factor * x ** exponent`, fitted by least squares on logarithms.

    Args:
        exponent: the exponent; `low` and `high` bound its 95% interval.
        factor: y at x = 1.
        r_squared: share of the variance of log y that the law explains.
        points: number of points in the fit.
    """

    exponent: float
    low: float
    high: float
    factor: float
    r_squared: float
    points: int

    def __call__(self, x: float) -> float:
        """Evaluate the law at x."""
        return float(self.factor * x**self.exponent)


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Fit a power law; None for fewer than three distinct x, which would not constrain it."""
    if len({*x}) < 3:
        return None
    fit = stats.linregress([math.log(value) for value in x], [math.log(value) for value in y])
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * fit.stderr)
    slope = float(fit.slope)
    return PowerLaw(slope, slope - margin, slope + margin, math.exp(fit.intercept), float(fit.rvalue) ** 2, len(x))

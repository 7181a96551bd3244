"""How sure a figure is: 95% intervals of shares, and of differences between two ways of answering the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Numbers = NDArray[np.float64]
Aggregate = Callable[[Numbers], Numbers]  # [..., questions] to [...]

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 10_000
CHUNK = 500  # resamples at a time, for the memory they take


def wilson(right: int, asked: int) -> Interval:
    """Wilson's score interval of a share, 95%.

    Raises:
        ValueError: nothing was asked, or not that much can be right.
    """
    if not 0 <= right <= asked or not asked:
        raise ValueError(f"{right} right of {asked} is no share; give a number of questions and how many of them were right")
    share, weight = right / asked, Z * Z / asked
    centre = (share + weight / 2) / (1 + weight)
    spread = Z * sqrt(share * (1 - share) / asked + weight / (4 * asked)) / (1 + weight)
    return max(centre - spread, 0.0), min(centre + spread, 1.0)


def bootstrap(values: Numbers, aggregate: Aggregate, seed: int = 0) -> Interval:
    """Percentile bootstrap of an aggregate over questions, 95%.

    Args:
        values: `[questions]`.
        aggregate: of `[..., questions]`, over the last axis.
        seed: of the resamples.
    """
    return _percentiles([aggregate(values[drawn]) for drawn in _resamples(len(values), seed)])


def paired_bootstrap(values: Numbers, others: Numbers, aggregate: Aggregate, seed: int = 0) -> Interval:
    """Percentile bootstrap of `aggregate(values) - aggregate(others)`, 95%: both are of the same questions, drawn together.

    Args:
        values, others: `[questions]`.
        aggregate: of `[..., questions]`, over the last axis.
        seed: of the resamples.

    Raises:
        ValueError: different numbers of questions.
    """
    if len(values) != len(others):
        raise ValueError(f"a paired difference is of the same questions, got {len(values)} and {len(others)} of them")
    return _percentiles([aggregate(values[drawn]) - aggregate(others[drawn]) for drawn in _resamples(len(values), seed)])


def _resamples(questions: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Places drawn with replacement, `[CHUNK, questions]` each."""
    rng = np.random.default_rng(seed)
    return (rng.integers(questions, size=(CHUNK, questions)) for _ in range(RESAMPLES // CHUNK))


def _percentiles(parts: list[Numbers]) -> Interval:
    low, high = np.percentile(np.concatenate(parts), [2.5, 97.5])
    return float(low), float(high)

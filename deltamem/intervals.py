"""95% confidence intervals: of shares, and of differences and ratios between settings on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Numbers = NDArray[np.float64]
Aggregate = Callable[[Numbers], Numbers]  # [..., questions] to [...]

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 10_000
CHUNK = 500  # resamples at a time, to limit memory use


def wilson(right: int, asked: int) -> Interval:
    """Wilson's 95% score interval of a share.

    Raises:
        ValueError: `asked` is 0, or `right` is not between 0 and `asked`.
    """
    if not 0 <= right <= asked or not asked:
        raise ValueError(f"{right} right of {asked} is no share; give a number of questions and how many of them were right")
    share, weight = right / asked, Z * Z / asked
    centre = (share + weight / 2) / (1 + weight)
    spread = Z * sqrt(share * (1 - share) / asked + weight / (4 * asked)) / (1 + weight)
    return max(centre - spread, 0.0), min(centre + spread, 1.0)


def resample(seeds: Sequence[Numbers], aggregate: Aggregate, same_questions: bool = True, seed: int = 0) -> Numbers:
    """Bootstrap: resample the questions with replacement, and aggregate each resample.

    All rows are resampled together, so that differences and ratios between the returned rows are paired.

    With several seeds, both seeds and questions are resampled, and the statistic is the mean over seeds. If all seeds asked the
    same questions, these are drawn once for all of them; otherwise separately for each. With two or three seeds, such an
    interval
    is rough. An outcome that occurs in no question occurs in no resample, so its interval is too narrow.

    Args:
        seeds: `[rows, questions]` for each seed; a single one if there were no others.
        aggregate: aggregates `[..., questions]` over the last axis.
        same_questions: whether all seeds asked the same questions, in the same order.
        seed: seeds the resampling.

    Returns:
        `[rows, RESAMPLES]`.
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([_resample(seeds, aggregate, same_questions, rng) for _ in range(RESAMPLES // CHUNK)], axis=1)


def interval(resampled: Numbers) -> Interval:
    """The 95% percentile interval of resamples, `[RESAMPLES]`."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def ratio(resampled: Numbers, baseline: Numbers) -> Numbers | None:
    """Resampled ratios to a baseline; None unless the baseline is above 0 in all resamples, since a ratio would be meaningless.

    Args:
        resampled, baseline: rows returned by one call of `resample`.
    """
    return resampled / baseline if (baseline > 0).all() else None


def _resample(seeds: Sequence[Numbers], aggregate: Aggregate, same_questions: bool, rng: np.random.Generator) -> Numbers:
    """Draw `CHUNK` of the resamples."""
    chosen = rng.integers(len(seeds), size=(CHUNK, len(seeds)))
    shared = _places(seeds[0], CHUNK, rng) if same_questions else None
    total = np.zeros((len(seeds[0]), CHUNK))
    for place in range(len(seeds)):
        for index, values in enumerate(seeds):
            resamples = np.flatnonzero(chosen[:, place] == index)
            drawn = _places(values, len(resamples), rng) if shared is None else shared[resamples]
            total[:, resamples] += aggregate(values[:, drawn])
    mean: Numbers = total / len(seeds)
    return mean


def _places(values: Numbers, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of questions drawn with replacement, `[count, questions]`."""
    questions = values.shape[1]
    return rng.integers(questions, size=(count, questions))

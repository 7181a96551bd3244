"""Summarises times: medians, and the spread of the runs around them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# With fewer runs, not even the lowest and highest enclose the true median with 95% confidence.
FEWEST_RUNS = 6
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """Times of two alternating workloads.

    Args:
        pairs: the milliseconds of the first and of the second, one pair per turn.
    """

    pairs: Sequence[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        """Second to first, per turn: slowdowns that affect both cancel out."""
        return [second / first for first, second in self.pairs]

    def figures(self) -> dict[str, Any]:
        """The figures as JSON-serialisable data."""
        base, adapted = ([pair[side] for pair in self.pairs] for side in (0, 1))
        return {
            "base_ms": statistics.median(base),
            "base_ms_quartiles": quartiles(base),
            "adapted_ms": statistics.median(adapted),
            "adapted_ms_quartiles": quartiles(adapted),
            "ratio": statistics.median(self.ratios),
            "ratio_interval": median_interval(self.ratios),
            "pairs_ms": [list(pair) for pair in self.pairs],
        }


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper quartile."""
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return [lower, upper]


def median_interval(values: Sequence[float]) -> list[float]:
    """The two values that enclose the true median with 95% confidence, for any distribution.

    Each run is above the true median with probability one half, like the toss of a coin. Cut off at either end as many runs as
    are all heads, or all tails, in at most 5% of cases.
    """
    count, ordered = len(values), sorted(values)
    cut, outside = 0, 1 / 2**count
    while 2 * outside <= 1 - CONFIDENCE:
        cut += 1
        outside += math.comb(count, cut) / 2**count
    if not cut:
        raise ValueError(f"an interval of the median needs at least {FEWEST_RUNS} values, got {count}")
    return [ordered[cut - 1], ordered[count - cut]]

"""From times to figures: medians, and how far the runs spread around them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Of fewer runs not even the lowest and the highest hold the true median with 95% confidence.
FEWEST_RUNS = 6
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """Times of two things that took turns.

    Args:
        pairs: milliseconds of the first and of the second, one pair for each turn.
    """

    pairs: Sequence[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        """Second to first, turn by turn: what slows down both for a while cancels out."""
        return [second / first for first, second in self.pairs]

    def figures(self) -> dict[str, Any]:
        """The figures as they are printed as JSON."""
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
    """Between which two values the middle half lies."""
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return [lower, upper]


def median_interval(values: Sequence[float]) -> list[float]:
    """The two values between which the true median lies with 95% confidence, whatever the distribution.

    Each run is above the true median like a coin shows heads; so many runs are cut off at either end as are all heads, or all
    tails, in no more than 5% of the cases.
    """
    count, ordered = len(values), sorted(values)
    cut, outside = 0, 1 / 2**count
    while 2 * outside <= 1 - CONFIDENCE:
        cut += 1
        outside += math.comb(count, cut) / 2**count
    if not cut:
        raise ValueError(f"an interval of the median needs at least {FEWEST_RUNS} values, got {count}")
    return [ordered[cut - 1], ordered[count - cut]]

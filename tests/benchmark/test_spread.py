import statistics

import pytest

from deltamem.benchmark.ratios import Comparison, median_interval, quartiles

PAIRS = [(10.0, 11.0), (20.0, 21.0), (10.0, 12.0), (40.0, 44.0), (10.0, 10.5), (10.0, 13.0), (10.0, 11.5)]


def test_the_ratio_is_that_of_each_turn():
    """A turn in which everything took four times as long weighs as much as any other."""
    figures = Comparison(PAIRS).figures()
    assert figures["ratio"] == statistics.median(adapted / base for base, adapted in PAIRS) == 1.1
    assert figures["ratio"] != figures["adapted_ms"] / figures["base_ms"]
    assert figures["base_ms"] == 10
    assert figures["adapted_ms"] == 12
    assert figures["pairs_ms"] == [list(pair) for pair in PAIRS]


def test_quartiles_hold_the_middle_half():
    assert quartiles([5, 1, 4, 2, 3]) == [2, 4]


@pytest.mark.parametrize(
    ("count", "interval"),
    # The ranks of the textbook's table for a median's 95% interval.
    [(6, [1, 6]), (8, [1, 8]), (9, [2, 8]), (15, [4, 12]), (25, [8, 18]), (50, [18, 33])],
)
def test_the_interval_of_a_median(count, interval):
    assert median_interval([*range(count, 0, -1)]) == interval


def test_too_few_for_an_interval():
    with pytest.raises(ValueError, match="at least 6 values, got 5"):
        median_interval([1, 2, 3, 4, 5])

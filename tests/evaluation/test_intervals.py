import numpy as np
import pytest

from deltamem.evaluation.intervals import bootstrap, paired_bootstrap, wilson
from deltamem.evaluation.task import perplexity, share


def test_wilson_by_hand():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # the textbook's example
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@pytest.mark.parametrize(("right", "asked"), [(0, 0), (3, 2), (-1, 2)])
def test_no_share(right, asked):
    with pytest.raises(ValueError, match="is no share"):
        wilson(right, asked)


def test_the_bootstrap_of_a_mean_is_nearly_its_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap(values, share("x").aggregate)
    spread = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.01)


def test_a_paired_difference_is_surer_than_an_unpaired_one():
    others = np.random.default_rng(0).normal(size=400)
    values = others + 0.1
    aggregate = share("x").aggregate
    assert paired_bootstrap(values, others, aggregate) == pytest.approx((0.1, 0.1))
    low, high = paired_bootstrap(values, others[::-1], aggregate)
    assert low < 0 < high


def test_perplexity_is_of_the_mean_log_likelihood():
    values = np.log([0.5, 0.125])
    assert perplexity("x").aggregate(values) == pytest.approx(4.0)
    assert perplexity("x").aggregate(np.stack([values, values * 2])) == pytest.approx([4.0, 16.0])

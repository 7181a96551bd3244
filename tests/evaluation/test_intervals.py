import numpy as np
import pytest

from deltamem.evaluation.task import mean, perplexity
from deltamem.intervals import interval, ratio, resample, wilson


def test_wilson_by_hand():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # the textbook's example
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@pytest.mark.parametrize(("right", "asked"), [(0, 0), (3, 2), (-1, 2)])
def test_no_share(right, asked):
    with pytest.raises(ValueError, match="is no share"):
        wilson(right, asked)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def spread(resampled):
    """The standard deviation that an interval would be of."""
    low, high = interval(resampled)
    return (high - low) / (2 * 1.96)


def test_the_bootstrap_of_a_mean_is_nearly_its_normal_interval():
    values = normal(1, 400)
    low, high = interval(resample([values], mean)[0])
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_rows_are_drawn_together():
    others = 2 + normal(400)
    shifted, doubled, turned, baseline = resample([np.stack([others + 0.1, 2 * others, others[::-1], others])], mean)
    assert interval(shifted - baseline) == pytest.approx((0.1, 0.1))
    assert interval(ratio(doubled, baseline)) == pytest.approx((2.0, 2.0))
    low, high = interval(turned - baseline)  # other questions beside each other: as if they were unpaired
    assert low < 0 < high


def test_a_ratio_to_what_may_be_nothing_says_nothing():
    rare, frequent, negative = (np.zeros(100) for _ in range(3))
    rare[:2], frequent[:50], negative[:] = 1, 1, -1
    rare, frequent, negative = resample([np.stack([rare, frequent, negative])], mean)
    assert ratio(frequent, rare) is None
    assert ratio(negative, negative) is None
    assert interval(ratio(rare, frequent))[0] >= 0


def test_the_same_questions_of_several_seeds_are_no_further_questions():
    """Three seeds that say the same are as sure as one; three that asked other questions are surer."""
    values = normal(1, 300)
    one = spread(resample([values], mean)[0])
    assert spread(resample([values] * 3, mean)[0]) == pytest.approx(one, rel=0.03)
    others = spread(resample([values] * 3, mean, same_questions=False)[0])
    assert others == pytest.approx(one / np.sqrt(3), rel=0.03)


@pytest.mark.parametrize("same_questions", [True, False])
def test_seeds_that_differ_make_an_interval_wider(same_questions):
    values = normal(1, 300)
    seeds = [values - 1, values, values + 1]
    drawn = resample(seeds, mean, same_questions)[0]
    # The mean of three seeds drawn from three, whose variance is 2/3; the questions add little to it.
    assert drawn.std() == pytest.approx(np.sqrt(2 / 9), rel=0.05)


def test_seeds_may_have_asked_different_numbers_of_questions():
    seeds = [np.full((2, 5), 1.0), np.full((2, 50), 3.0)]
    drawn = resample(seeds, mean, same_questions=False)
    assert {*drawn.flat} == {1.0, 2.0, 3.0}  # each seed counts once, however many questions it asked


def test_perplexity_is_of_the_mean_log_likelihood():
    values = np.log([0.5, 0.125])
    assert perplexity("x").aggregate(values) == pytest.approx(4.0)
    assert perplexity("x").aggregate(np.stack([values, values * 2])) == pytest.approx([4.0, 16.0])

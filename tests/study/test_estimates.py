import pytest

from deltamem.study.estimates import Estimate, capacity, power_law


def test_the_interval_of_a_mean_is_students():
    # By hand: mean 0.5, standard deviation 0.1, t(0.975, 2) = 4.3027, so 4.3027 * 0.1 / sqrt(3).
    estimate = Estimate((0.4, 0.5, 0.6))
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.margin == pytest.approx(0.24841, abs=1e-5)
    assert str(estimate) == "50 ± 25"
    assert Estimate((0.4,)).margin is None


def test_capacity_is_where_recall_falls_half_way_to_chance():
    # Chance 0.1: half way is 0.55, in the middle between 0.8 and 0.3, so at the geometric mean of 4 and 16.
    assert capacity({1: 1.0, 4: 0.8, 16: 0.3, 64: 0.2}, 0.1) == pytest.approx(8)
    assert capacity({1: 1.0, 4: 0.5}, 0) == pytest.approx(4)
    assert capacity({1: 1.0, 4: 0.9}, 0.1) is None
    assert capacity({1: 0.4, 4: 0.9, 16: 0.1}, 0.1) is None


def test_an_exact_power_law_is_found():
    law = power_law([16, 64, 256], [3 * size**0.5 for size in (16, 64, 256)])
    assert law.exponent == pytest.approx(0.5)
    assert law.factor == pytest.approx(3)
    assert law.r_squared == pytest.approx(1)
    assert law.low == pytest.approx(law.high)
    assert law(100) == pytest.approx(30)


def test_the_exponents_interval():
    # By hand in decades: x 0, 1, 2, y 0, 1, 1: slope 0.5, residuals -1/6, 1/3, -1/6, its error sqrt((1/6) / 2),
    # t(0.975, 1) = 12.706.
    law = power_law([1, 10, 100], [1, 10, 10])
    assert law.exponent == pytest.approx(0.5)
    assert law.high - law.exponent == pytest.approx(12.7062 * (1 / 12) ** 0.5, rel=1e-4)
    assert law.r_squared == pytest.approx(0.75)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([4, 4, 9], [1, 2, 3])])
def test_there_is_no_law_of_two_sizes(x, y):
    assert power_law(x, y) is None

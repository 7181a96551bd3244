import numpy as np
import pytest

from deltamem.evaluation.leave_one_out import leave_one_out

# The paper's main table (arXiv 2605.12357, Qwen3-4B-Instruct): the frozen backbone, and the memory TSW.
BACKBONE = {"ifeval": 81.89, "hotpotqa": 42.35, "gpqa": 39.39, "memory_agent_bench": 29.54, "locomo": 40.79}
TSW = {"ifeval": 82.99, "hotpotqa": 49.41, "gpqa": 40.40, "memory_agent_bench": 36.48, "locomo": 46.53}
RATIOS = {name: figure / BACKBONE[name] for name, figure in TSW.items()}


def test_which_benchmark_carries_the_paper():
    mean, without = leave_one_out(RATIOS)
    # By hand: (1.01343 + 1.16671 + 1.02564 + 1.23494 + 1.14072) / 5, and the sums without one of them over 4.
    assert mean == pytest.approx(1.11629, abs=1e-5)
    assert without == pytest.approx(
        {"ifeval": 1.14200, "hotpotqa": 1.10368, "gpqa": 1.13895, "memory_agent_bench": 1.08663, "locomo": 1.11018}, abs=1e-5
    )
    assert min(without, key=without.get) == "memory_agent_bench"  # without it the least is left


def test_of_resamples():
    drawn = {"one": np.array([1.0, 2.0]), "other": np.array([3.0, 5.0]), "third": np.array([2.0, 2.0])}
    mean, without = leave_one_out(drawn)
    assert mean == pytest.approx([2.0, 3.0])
    assert without["other"] == pytest.approx([1.5, 2.0])


@pytest.mark.parametrize("ratios", [{}, {"locomo": 1.1}])
def test_of_one_benchmark_nothing_can_be_left_out(ratios):
    with pytest.raises(ValueError, match="two benchmarks are needed, got"):
        leave_one_out(ratios)

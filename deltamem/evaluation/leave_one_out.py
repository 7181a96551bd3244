"""How much each benchmark contributes to an average over benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from deltamem.intervals import Numbers

Figure = TypeVar("Figure", float, Numbers)


def leave_one_out(ratios: Mapping[str, Figure]) -> tuple[Figure, dict[str, Figure]]:
    """Compute the mean over benchmarks, and the mean without each of them.

    Args:
        ratios: each benchmark's figure as a multiple of the baseline's, or its resamples, `[RESAMPLES]`.

    Returns:
        The mean over all benchmarks, and, by the name of the one left out, the mean over the others.

    Raises:
        ValueError: there are fewer than two benchmarks.
    """
    if len(ratios) < 2:
        raise ValueError(f"to leave one out, two benchmarks are needed, got {', '.join(ratios) or 'none'}")
    values = np.stack([np.asarray(ratio, dtype=np.float64) for ratio in ratios.values()])
    total = values.sum(0)
    others = (total - values) / (len(values) - 1)
    return total / len(values), dict(zip(ratios, others, strict=True))

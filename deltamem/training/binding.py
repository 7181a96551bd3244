"""Two numbers to steer by: how much more a memory tells of its own text than another's does, and how much there is to tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from deltamem.training.views import IN_CONTEXT, SHUFFLED_IN_CONTEXT, SHUFFLED_MEMORY

Nats = npt.NDArray[np.float64]
OWN_MEMORY = "memory"
RESAMPLES = 1000
OUTER = (2.5, 97.5)  # percentiles


def binding(nats: Mapping[str, Nats]) -> dict[str, float]:
    """What evaluation in views and controls says about a memory.

    Args:
        nats: by the name of a view or control, the mean cost of a labelled token of each read, `[reads]`; all in one order.

    Returns:
        `specific`: the cost with another's memory less that with its own, nats a token; `bound`: its share of the same
        difference with the histories in the bare backbone's context; each with its 95% interval, `specific_low`,
        `specific_high` and so on, bootstrapped over reads. What the given controls do not tell is left out, and a share of a
        difference that is not above 0.
    """
    if not {OWN_MEMORY, SHUFFLED_MEMORY} <= nats.keys():
        return {}
    specific = nats[SHUFFLED_MEMORY] - nats[OWN_MEMORY]
    drawn = np.random.default_rng(0).integers(len(specific), size=(RESAMPLES, len(specific)))
    figures = _with_interval("specific", float(specific.mean()), specific[drawn].mean(1))
    if not {IN_CONTEXT, SHUFFLED_IN_CONTEXT} <= nats.keys():
        return figures
    ceiling = nats[SHUFFLED_IN_CONTEXT] - nats[IN_CONTEXT]
    if (ceilings := ceiling[drawn].mean(1)).min() <= 0:
        return figures
    return figures | _with_interval("bound", float(specific.mean() / ceiling.mean()), specific[drawn].mean(1) / ceilings)


def _with_interval(name: str, value: float, resampled: Nats) -> dict[str, float]:
    low, high = np.percentile(resampled, OUTER)
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}

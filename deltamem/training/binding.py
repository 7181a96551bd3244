"""Two numbers to steer by: how much more a memory tells of its own text than another's does, and how much there is to tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deltamem.intervals import Numbers, interval, ratio, resample
from deltamem.training.views import IN_CONTEXT, SHUFFLED_IN_CONTEXT, SHUFFLED_MEMORY

OWN_MEMORY = "memory"
CEILING = (IN_CONTEXT, SHUFFLED_IN_CONTEXT)


def binding(nats: Mapping[str, Numbers]) -> dict[str, float]:
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
    differences = [nats[SHUFFLED_MEMORY] - nats[OWN_MEMORY]]
    if {*CEILING} <= nats.keys():
        differences.append(nats[SHUFFLED_IN_CONTEXT] - nats[IN_CONTEXT])
    specific, *ceiling = (float(difference.mean()) for difference in differences)
    drawn, *drawn_ceiling = resample([np.stack(differences)], lambda values: values.mean(-1))
    figures = _with_interval("specific", specific, drawn)
    shares = ratio(drawn, drawn_ceiling[0]) if drawn_ceiling else None
    return figures if shares is None else figures | _with_interval("bound", specific / ceiling[0], shares)


def _with_interval(name: str, value: float, resampled: Numbers) -> dict[str, float]:
    low, high = interval(resampled)
    return {name: value, f"{name}_low": low, f"{name}_high": high}

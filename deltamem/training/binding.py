"""How much a memory knows about its own text beyond another's, and how much of what the context knows that is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deltamem.intervals import Numbers, interval, ratio, resample
from deltamem.training.views import IN_CONTEXT, SHUFFLED_IN_CONTEXT, SHUFFLED_MEMORY

OWN_MEMORY = "memory"
CEILING = (IN_CONTEXT, SHUFFLED_IN_CONTEXT)


def binding(nats: Mapping[str, Numbers]) -> dict[str, float]:
    """Compute the `specific` and `bound` figures from evaluation in views and controls.

    Args:
        nats: for each view or control, the mean cost per labelled token of each read, `[reads]`, in the same order throughout.

    Returns:
        `specific`: the cost with another chat's memory minus the cost with its own, in nats per token; `bound`: `specific` as a
        share of the same difference measured with the histories in the bare backbone's context. Each comes with its 95%
        interval (`specific_low`, `specific_high` and so on), bootstrapped over reads. Figures whose controls are missing are
        left out, as is a share of a difference that is not positive.
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

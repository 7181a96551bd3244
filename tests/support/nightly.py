"""What stands for the rest by day, and what runs every night."""

import os
from collections.abc import Sequence
from typing import TypeVar

EVERY_NIGHT = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
T = TypeVar("T")


def by_day(kept: Sequence[T], every: Sequence[T]) -> Sequence[T]:
    """The cases that stand for all of them; nightly all."""
    return every if EVERY_NIGHT else kept

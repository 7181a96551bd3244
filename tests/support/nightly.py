"""What stands for the rest by day, and what runs every night."""

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

EVERY_NIGHT = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
every_night = pytest.mark.skipif(not EVERY_NIGHT, reason="runs every night; other tests stand for it by day")
T = TypeVar("T")


def by_day(kept: Sequence[T], every: Sequence[T]) -> Sequence[T]:
    """The cases that stand for all of them; nightly all."""
    return every if EVERY_NIGHT else kept

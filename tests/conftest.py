"""What every test shares: Hypothesis profiles and one thread for torch.

`HYPOTHESIS_PROFILE=nightly` tries a hundred times as many examples; a test that has its own number takes it from `examples.py`.

Helpers, such as the tiny models of `tiny.py`, are in `support/`. `pythonpath` in pyproject.toml puts that folder and
`contract/` on the import path: test modules say `from tiny import tiny_adapted`.
"""

import os
import signal

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that there is not is refused at once, whatever network there is

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") == "true" else "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is about the delta rule alone where another kind of memory is tested; see `tiny.py`."""
    from tiny import KIND

    if KIND != "delta":
        items[:] = [item for item in items if item.get_closest_marker("delta_rule") is None]

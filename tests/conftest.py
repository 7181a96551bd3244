"""What every test shares: Hypothesis profiles and one thread for torch.

Tiny models come from `tests/tiny.py`. pytest runs with `--import-mode=importlib`, which puts no test folder on the import path,
so this file, which pytest loads first, does: test modules then say `from tiny import tiny_adapted`.
"""

import os
import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")

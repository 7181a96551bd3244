"""Times how long commands and imports take to start, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.progress import Progress

from deltamem.benchmark.interleave import take_turns
from deltamem.benchmark.ratios import quartiles

COMMAND = "from deltamem_cli import app; app(['{}'])"
PROGRAMS = {
    "python": "",
    "deltamem --version": COMMAND.format("--version"),
    "deltamem --help": COMMAND.format("--help"),
    "import torch": "import torch",
    "import peft": "import peft",
    "import deltamem": "import deltamem",
}


def time_start(runs: int, progress: Progress) -> list[dict[str, Any]]:
    """Time every program in turns.

    Args:
        runs: number of turns.
        progress: shows the turns.

    Returns:
        One row per program: its `name`, its median time in `ms`, and their `ms_quartiles`.
    """
    workloads = [partial(_started, program) for program in PROGRAMS.values()]
    turns = take_turns(workloads, runs, torch.device("cpu"), progress, "start")
    times = {name: [turn[index] for turn in turns] for index, name in enumerate(PROGRAMS)}
    return [{"name": name, "ms": median(took), "ms_quartiles": quartiles(took)} for name, took in times.items()]


@contextmanager
def _started(program: str) -> Iterator[Callable[[], object]]:
    yield partial(subprocess.run, [sys.executable, "-c", program], check=True, capture_output=True)

"""Times workloads that alternate in one process, so that temporary slowdowns of the machine affect all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.progress import Progress

from deltamem.workload import Workload, wait_for

# Untimed runs before the timed ones, which fill caches, select kernels and compile.
WARM_UP = 2


def take_turns(
    workloads: Sequence[Workload], runs: int, device: torch.device, progress: Progress, name: str
) -> list[list[float]]:
    """Time every workload once per turn; the first one changes from turn to turn.

    Args:
        workloads: the workloads to time.
        runs: number of turns.
        device: the device they run on.
        progress: shows the turns.
        name: the progress bar's description.

    Returns:
        The milliseconds of every workload, for each turn.
    """
    times = []
    with _no_garbage_collection():
        for turn in progress.track(range(WARM_UP + runs), description=name):
            order = range(len(workloads)) if turn % 2 else reversed(range(len(workloads)))
            took = {index: milliseconds(workloads[index], device) for index in order}
            times.append([took[index] for index in range(len(workloads))])
    return times[WARM_UP:]


def milliseconds(workload: Workload, device: torch.device) -> float:
    """Time the work once, until the device has finished it."""
    with workload() as work:
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        return (time.perf_counter() - start) * 1e3


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

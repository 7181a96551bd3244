"""Times workloads that take turns in one process, so that what slows down the machine for a while slows down all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from rich.progress import Progress

# Entering it prepares a run, untimed; it gives the work to be timed; leaving it clears up, untimed.
Workload = Callable[[], AbstractContextManager[Callable[[], object]]]
# Untimed runs before the timed ones: caches fill, kernels are chosen, a compiler compiles.
WARM_UP = 2


def take_turns(
    workloads: Sequence[Workload], runs: int, device: torch.device, progress: Progress, name: str
) -> list[list[float]]:
    """Time every workload once in each turn; which goes first changes from turn to turn.

    Args:
        workloads: what is timed.
        runs: number of turns.
        device: where they run.
        progress: shows the turns.
        name: what is measured, for the progress bar.

    Returns:
        For every turn the milliseconds of every workload.
    """
    times = []
    with _no_garbage_collection():
        for turn in progress.track(range(WARM_UP + runs), description=name):
            order = range(len(workloads)) if turn % 2 else reversed(range(len(workloads)))
            took = {index: milliseconds(workloads[index], device) for index in order}
            times.append([took[index] for index in range(len(workloads))])
    return times[WARM_UP:]


def milliseconds(workload: Workload, device: torch.device) -> float:
    """How long the work takes, once, until the device has finished it."""
    with workload() as work:
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        return (time.perf_counter() - start) * 1e3


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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

"""A piece of work to be measured, and its peak memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

# Entering it prepares a run, untimed, and yields the work to time; leaving it cleans up, untimed.
Workload = Callable[[], AbstractContextManager[Callable[[], object]]]
# Linux: writing 5 to the first resets the process's peak, VmHWM in the second.
_RESET_PEAK, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_bytes(workload: Workload, device: torch.device) -> int | None:
    """The peak memory while the work runs once, including the model's weights; None if the system cannot tell.

    On a CUDA device, the memory allocated there; otherwise the process's resident memory.
    """
    with workload() as work:
        wait_for(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            work()
            return torch.cuda.max_memory_allocated(device)
        if device.type != "cpu":
            return None
        try:
            _RESET_PEAK.write_text("5")
            work()
            peak = _PEAK.search(_STATUS.read_text())
        except OSError:
            return None
    return None if peak is None else int(peak[1]) * 1024

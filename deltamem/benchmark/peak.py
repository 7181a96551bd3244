"""Measures the peak memory of a piece of work."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from deltamem.benchmark.interleave import Workload, wait_for

# Linux: writing 5 to the first resets the process's peak, VmHWM in the second.
_RESET_PEAK, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


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

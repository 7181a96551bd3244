"""How much memory a piece of work takes at most."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from deltamem.benchmark.interleave import Workload, wait_for

# Linux: to write 5 to the first makes the process's peak, VmHWM in the second, start anew.
_RESET_PEAK, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def peak_bytes(workload: Workload, device: torch.device) -> int | None:
    """The most memory in use while the work runs once, the model's weights included; None if the system cannot tell.

    On a CUDA device all that is allocated there, else what the process has in the machine's memory.
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

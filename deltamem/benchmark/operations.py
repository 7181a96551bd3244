"""Finds the operations that take the time, in the bare and in the adapted model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from deltamem.benchmark.interleave import WARM_UP
from deltamem.workload import Workload, wait_for

PROFILED_RUNS = 5


def compare_operations(workloads: Sequence[Workload], device: torch.device) -> list[dict[str, Any]]:
    """Run the bare and the adapted workload in turns under PyTorch's profiler.

    Returns:
        One row per operation, those with the largest differences in time first: its name, and for both models the medians of
        its calls per run and of its self time in milliseconds, on the device or, without one, on the CPU. The profiler slows
        every call down, so many small calls look more expensive than they are; Python code between operations is not listed.
    """
    turns = [[_operations(workload, device) for workload in workloads] for _ in range(WARM_UP + PROFILED_RUNS)][WARM_UP:]
    rows = []
    for name in dict.fromkeys(name for turn in turns for operations in turn for name in operations):
        (base_calls, base_ms), (calls, ms) = (
            [statistics.median(values) for values in zip(*(turn[side].get(name, (0, 0.0)) for turn in turns), strict=True)]
            for side in (0, 1)
        )
        rows.append({"operation": name, "base_calls": base_calls, "adapted_calls": calls, "base_ms": base_ms, "adapted_ms": ms})
    return sorted(rows, key=lambda row: abs(row["adapted_ms"] - row["base_ms"]), reverse=True)


def _operations(workload: Workload, device: torch.device) -> dict[str, tuple[int, float]]:
    """Calls and milliseconds by operation."""
    on_cpu = device.type == "cpu"
    activities = [ProfilerActivity.CPU] if on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with workload() as work:
        wait_for(device)
        with profile(activities=activities) as profiler:
            work()
            wait_for(device)
    took = {event.key: (event.count, _microseconds(event, on_cpu) / 1e3) for event in profiler.key_averages()}
    return {name: figures for name, figures in took.items() if figures[1] > 0}


def _microseconds(event: Any, on_cpu: bool) -> float:
    return float(event.self_cpu_time_total if on_cpu else event.self_device_time_total)

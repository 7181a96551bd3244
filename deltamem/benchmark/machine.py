"""Describes the machine, so that figures can be interpreted later."""

from __future__ import annotations

import platform
import re
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "deltamem")
_CPU_NAME = re.compile(r"^model name\s*: (.+)$", re.MULTILINE)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The machine, the number of threads, the versions of relevant packages, and the date."""
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    try:
        found = _CPU_NAME.search(Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()

"""What can compute the delta rule: one table, a row for each backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

# A rule gets float32 tensors [batch, heads, tokens, r] and a state [batch, heads, r, r], all checked, and no mask.
Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Backend:
    """Where the code of a backend is, as "module:name"; imported when it is first used, as its package may not be installed.

    Args:
        rule: the rule itself.
        package: what has to be installed, None for PyTorch alone.
        device: the type of device it is for, None for any.
        sequence: from a layer's projections to its reads in one call, with gradients; None if there is none.
        step: likewise for a single token, without gradients.
        decode_step: the pass of one token through all layers, a `deltamem.forward.decode.DecodeStep`.
    """

    rule: str
    package: str | None = None
    device: str | None = None
    sequence: str | None = None
    step: str | None = None
    decode_step: str | None = None


BACKENDS = {
    "reference": Backend(rule="deltamem.rule.reference:reference_delta_rule"),
    "chunked": Backend(rule="deltamem.rule.chunked:chunked_delta_rule"),
    "compiled": Backend(
        rule="deltamem.rule.cpu.rule:compiled_delta_rule",
        package="numba",
        device="cpu",
        sequence="deltamem.rule.cpu.gated:compiled_gated_rule",
        decode_step="deltamem.forward.decode_cpu:CpuDecodeStep",
    ),
    "triton": Backend(
        rule="deltamem.rule.gpu.rule:triton_delta_rule",
        package="triton",
        device="cuda",
        step="deltamem.rule.gpu.step:triton_step",
        decode_step="deltamem.forward.decode_gpu:GpuDecodeStep",
    ),
}


@cache
def load(place: str) -> Any:
    """What stands at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@cache
def importable(name: str) -> bool:
    """Whether a backend's package is installed and works."""
    try:
        load(BACKENDS[name].rule)
    except ImportError:
        return False
    return True


def rule(name: str) -> Rule:
    """The rule of a backend."""
    found: Rule = load(BACKENDS[name].rule)
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(name: str, device: str) -> str:
    """The name of the backend to use for tensors on a type of device.

    Raises:
        ValueError: an unknown name, or a backend that does not run here.
    """
    if name == "auto":
        return next((name for name, made in BACKENDS.items() if made.device == device and importable(name)), "chunked")
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r} of the delta rule; choose 'auto' or one of {sorted(BACKENDS)}")
    package, place = BACKENDS[name].package, BACKENDS[name].device
    if package is not None and not importable(name):
        raise ValueError(f"the backend {name!r} of the delta rule needs {package}; install it, or choose 'auto' or 'chunked'")
    if place not in (None, device) and not (name == "triton" and interpreted()):
        raise ValueError(f"the backend {name!r} of the delta rule is for {place}, got tensors on {device}; choose 'auto'")
    return name


@cache
def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter (TRITON_INTERPRET=1), which is for tensors on the CPU."""
    from triton import knobs

    return bool(knobs.runtime.interpret)

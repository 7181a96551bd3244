"""The backends of the delta rule: one table, with one row per backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

# A rule takes float32 tensors [batch, heads, tokens, r] and a state [batch, heads, r, r], all checked, and no mask.
Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Backend:
    """The functions of a backend, each as "module:name". They are imported on first use: the package may not be installed.

    Args:
        rule: the delta rule.
        package: the package that must be installed; None if PyTorch is enough.
        device: the device type that the backend supports; None for any.
        sequence: a fused function from a layer's projections to its reads, with gradients; None if there is none.
        step: the same for a single token, without gradients.
        decode_step: a `deltamem.forward.decode.DecodeStep`, which passes one token through all layers.
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
    """Import the object at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@cache
def importable(name: str) -> bool:
    """Whether a backend's package is installed and can be imported."""
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
    """The name of the backend to use for tensors on a device type.

    Raises:
        ValueError: the name is unknown, or the backend does not run here.
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
    """Whether Triton runs its kernels in the interpreter (TRITON_INTERPRET=1), which takes tensors on the CPU."""
    from triton import knobs

    return bool(knobs.runtime.interpret)

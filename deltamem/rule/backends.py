"""What can compute the delta rule, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from deltamem.rule.chunked import chunked_delta_rule
from deltamem.rule.reference import reference_delta_rule

# A backend gets float32 tensors [batch, heads, tokens, r] and a state [batch, heads, r, r], all checked, and needs no mask.
Backend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

BACKENDS: dict[str, Backend] = {"reference": reference_delta_rule, "chunked": chunked_delta_rule}
# Those that need an optional package: their module and function, the package, and the device they are for.
OPTIONAL = {
    "compiled": ("deltamem.rule.cpu.rule", "compiled_delta_rule", "numba", "cpu"),
    "triton": ("deltamem.rule.gpu.rule", "triton_delta_rule", "triton", "cuda"),
}


@cache
def importable(name: str) -> bool:
    """Whether an optional backend's package is there and works."""
    try:
        import_module(OPTIONAL[name][0])
    except ImportError:
        return False
    return True


@cache
def backend(name: str) -> Backend:
    """The function of a backend; an optional one's package is imported now."""
    if name in BACKENDS:
        return BACKENDS[name]
    module, function, *_ = OPTIONAL[name]
    return getattr(import_module(module), function)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(name: str, device: str) -> str:
    """The name of the backend to use for tensors on a type of device.

    Raises:
        ValueError: an unknown name, or a backend that does not run here.
    """
    if name == "auto":
        return next((n for n, (*_, place) in OPTIONAL.items() if place == device and importable(n)), "chunked")
    if name in BACKENDS:
        return name
    if name not in OPTIONAL:
        raise ValueError(
            f"unknown backend {name!r} of the delta rule; choose 'auto' or one of {sorted([*BACKENDS, *OPTIONAL])}"
        )
    *_, package, place = OPTIONAL[name]
    if not importable(name):
        raise ValueError(f"the backend {name!r} of the delta rule needs {package}; install it, or choose 'auto' or 'chunked'")
    if device != place and not (name == "triton" and interpreted()):
        raise ValueError(f"the backend {name!r} of the delta rule is for {place}, got tensors on {device}; choose 'auto'")
    return name


@cache
def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter (TRITON_INTERPRET=1), which is for tensors on the CPU."""
    from triton import knobs

    return bool(knobs.runtime.interpret)

"""How the functions of this package are compiled: on the first call, without the GIL, and cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# Fused multiply-add is allowed. Assuming that no NaN occurs is not: the caller must see a NaN.
_OPTIONS = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
# The number of multiplications that pays for one more thread: about a millisecond of work.
_WORK_PER_THREAD = 4_000_000


def _sources() -> str:
    """A digest of this package's files: any of them may be inlined into a compiled function."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


_DIGEST = _sources()


def part(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled functions call."""
    return njit(**_OPTIONS)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls with addresses and sizes. It is cached on disk if a folder is writable."""
    # Numba checks only the function's own file for changes. The digest in the name invalidates the cache for all the others.
    function.__qualname__ = f"{function.__qualname__}_{_DIGEST}"
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no writable cache folder: every process compiles again
        return njit(**_OPTIONS)(function)


@intrinsic
def floats(typing_context: Any, address: Any) -> Any:
    """A pointer to the float32 numbers at an address, for `numba.carray`."""
    return types.CPointer(types.float32)(types.intp), _to_pointer


@intrinsic
def flags(typing_context: Any, address: Any) -> Any:
    """A pointer to the booleans at an address, for `numba.carray`."""
    return types.CPointer(types.uint8)(types.intp), _to_pointer


@intrinsic
def integers(typing_context: Any, address: Any) -> Any:
    """A pointer to the int64 numbers at an address, for `numba.carray`."""
    return types.CPointer(types.int64)(types.intp), _to_pointer


def _to_pointer(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
    return builder.inttoptr(args[0], context.get_value_type(signature.return_type))


def run(kernel: Any, memories: int, work: int, *arguments: int) -> None:
    """Call a kernel for all memories (batch rows times heads), in several threads if there is enough work.

    The threads live only as long as the call. Starting them takes a tenth of a millisecond, and no thread is left for a fork to
    break.

    Args:
        kernel: takes the arguments, then the first memory and the end of the range.
        memories: the number of memories.
        work: the approximate number of multiplications per memory.
        arguments: addresses and sizes.
    """
    threads = min(memories, torch.get_num_threads(), memories * work // _WORK_PER_THREAD)
    if threads < 2:
        kernel(*arguments, 0, memories)
        return
    bounds = [memories * n // threads for n in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *arguments, *ends) for ends in pairwise(bounds)]:
            done.result()

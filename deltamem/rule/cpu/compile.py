"""How the functions of this package are compiled: when they are first called, without the GIL, and kept on disk."""

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

# A multiplication and an addition may round once; NaN may not be assumed away, since a caller must be able to see it.
_OPTIONS = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
# Multiplications that are worth a second thread: about a millisecond's.
_WORK_PER_THREAD = 4_000_000


def _sources() -> str:
    """A digest of this package's files, all of which become part of each compiled function."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


_DIGEST = _sources()


def part(function: Callable[..., Any]) -> Any:
    """A function that only compiled functions call."""
    return njit(**_OPTIONS)(function)


def entry(function: Callable[..., Any]) -> Any:
    """A function that Python calls: it gets addresses and sizes, and is kept on disk where that can be written."""
    # Numba looks for changes in the function's own file only. The name under which it is kept tells of changes in the others.
    function.__qualname__ = f"{function.__qualname__}_{_DIGEST}"
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder that can be written: compile it again in every process
        return njit(**_OPTIONS)(function)


@intrinsic
def floats(typing_context: Any, address: Any) -> Any:
    """The float32 numbers at an address, for `numba.carray`."""
    return types.CPointer(types.float32)(types.intp), _to_pointer


@intrinsic
def flags(typing_context: Any, address: Any) -> Any:
    """The booleans at an address, for `numba.carray`."""
    return types.CPointer(types.uint8)(types.intp), _to_pointer


@intrinsic
def integers(typing_context: Any, address: Any) -> Any:
    """The int64 numbers at an address, for `numba.carray`."""
    return types.CPointer(types.int64)(types.intp), _to_pointer


def _to_pointer(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
    return builder.inttoptr(args[0], context.get_value_type(signature.return_type))


def run(kernel: Any, memories: int, work: int, *arguments: int) -> None:
    """Call a kernel for all memories (batch rows times heads), in several threads if there is enough to do.

    The threads live as long as the call: they cost a tenth of a millisecond, and nothing is left for a fork to break.

    Args:
        kernel: it takes the arguments and then the first memory and the one after the last.
        memories: their number.
        work: multiplications of one memory, about.
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

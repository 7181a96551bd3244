"""Python frames, by which a memory scope distinguishes the code inside it from a generator's consumer."""

from __future__ import annotations

import asyncio
import inspect
import sys
from types import FrameType
from typing import Any


def home_frame(frame: FrameType | None) -> FrameType | None:
    """The frame whose `with` statement entered a context manager, past the frames of contextlib.

    Args:
        frame: the caller of `__enter__`.
    """
    while frame is not None and _is_helper(frame):
        frame = frame.f_back
    return frame


def is_generator(frame: FrameType) -> bool:
    """Whether a frame belongs to a generator."""
    return bool(frame.f_code.co_flags & inspect.CO_GENERATOR)


def is_async_generator(frame: FrameType) -> bool:
    """Whether a frame belongs to an asynchronous generator."""
    return bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)


def is_running_here(frame: FrameType) -> bool:
    """Whether a frame is on the caller's stack."""
    running: FrameType | None = sys._getframe(1)
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


def running_task() -> Any:
    """The running asyncio task; None outside a task."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop in this thread
        return None


def _is_helper(frame: FrameType) -> bool:
    """Whether a frame belongs to contextlib, or to a generator that contextlib turns into a context manager."""
    return _is_contextlib(frame) or ((is_generator(frame) or is_async_generator(frame)) and _is_contextlib(frame.f_back))


def _is_contextlib(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals.get("__name__") == "contextlib"

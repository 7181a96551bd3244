"""Saving that fails half way, at a step of one's choice."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

# The steps of saving a file, before and after the new one has taken the old one's place.
BEFORE = ["make a temporary file", "open the file", "write", "flush", "sync the file", "replace"]
AFTER = ["after the replacement", "open the folder", "sync the folder"]
ERRORS = {"error": OSError("disk full"), "interrupt": KeyboardInterrupt()}


@contextmanager
def failing(step: str, error: str) -> Iterator[None]:
    """What is saved inside fails at this step, with this one of `ERRORS`."""
    # That a file in its place may not survive a loss of power is no failure of the save.
    harmless = error == "error" and step in AFTER[1:]
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, step, ERRORS[error])
        with nullcontext() if harmless else pytest.raises(type(ERRORS[error])):
            yield


class Disk:
    """Stands in for the calls that save a file, and fails at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
        self.step, self.error = step, error
        self.syncs = 0
        self.os = {name: getattr(os, name) for name in ("fdopen", "fsync", "replace", "open")}
        self.mkstemp = tempfile.mkstemp
        patch.setattr(tempfile, "mkstemp", self.make)
        for name in self.os:
            patch.setattr(os, name, getattr(self, name))

    def reached(self, *steps: str) -> None:
        if self.step in steps:
            raise self.error

    def make(self, *args: Any, **kwargs: Any) -> Any:
        self.reached("make a temporary file")
        return self.mkstemp(*args, **kwargs)

    def fdopen(self, handle: int, *args: Any) -> Any:
        if self.step == "open the file":
            os.close(handle)
        self.reached("open the file")
        return File(self, handle, "wb")

    def fsync(self, handle: int) -> None:
        self.syncs += 1
        self.reached("sync the file" if self.syncs == 1 else "sync the folder")
        self.os["fsync"](handle)

    def replace(self, *args: Any) -> None:
        self.reached("replace")
        self.os["replace"](*args)
        self.reached("after the replacement")

    def open(self, *args: Any) -> int:
        if self.syncs == 1:
            self.reached("open the folder")
        return self.os["open"](*args)


class File(io.FileIO):
    """A file that is only half written when writing fails."""

    def __init__(self, disk: Disk, handle: int, mode: str) -> None:
        super().__init__(handle, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        if self.disk.step == "write":
            super().write(data[: len(data) // 2])
        self.disk.reached("write")
        return super().write(data)

    def flush(self) -> None:
        self.disk.reached("flush")

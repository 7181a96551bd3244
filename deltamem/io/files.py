"""Atomic file writes: a file is written completely or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# For temporary files; short, so that paths can be as long as the file system allows.
PREFIX = ".deltamem-"
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a path leads to a regular file or does not exist.

    Reading a pipe may block for ever, and a rename would replace a device by a file.

    Raises:
        ValueError: it leads to something else; the message says what.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:  # missing or unreachable: opening it will report that
        return
    if not stat.S_ISREG(mode):
        raise ValueError(f"{os.fspath(path)!r} is {KINDS.get(stat.S_IFMT(mode), 'something else')}, where a file belongs")


def write_atomically(path: str | os.PathLike[str], data: bytes, private: bool = True) -> None:
    """Write a file; an existing one is replaced in one step, or not at all.

    A killed process leaves a temporary file beside it, which the next process that writes to this folder removes.

    Args:
        path: the file.
        data: the complete contents.
        private: whether only its owner can read it; otherwise the umask decides.

    Raises:
        ValueError: the path leads to something other than a regular file.
        OSError: the file cannot be written; an existing one is untouched.
    """
    path = Path(path)
    check_regular(path)
    _remove_left_over(path.parent)
    with _temporary_file(path.parent) as (handle, temporary):
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not private:
                os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # already gone if the interrupt came after the rename
                os.unlink(temporary)
            raise
    with suppress(OSError):  # the file is in place; not every file system can sync a folder
        _sync_folder(path.parent)


@contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[int, str]]:
    """Create an open file; return its handle and path. Its lock distinguishes it from a killed process's left-over."""
    while True:
        handle, path = tempfile.mkstemp(dir=folder, prefix=PREFIX)
        lock = os.dup(handle)  # outlives the file object
        if _lock(lock):
            break
        os.close(handle)  # another process removed it as a left-over before it was locked
        os.close(lock)
    try:
        yield handle, path
    finally:
        os.close(lock)


def _umask() -> int:
    """Read the umask, which is only possible by setting it; files that other threads create meanwhile are private."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _lock(handle: int) -> bool:
    """Lock a file; return False if it was deleted before."""
    if fcntl is not None:
        with suppress(OSError):  # no locks on this file system: left-overs are not removed either
            fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0


def _remove_left_over(folder: Path) -> None:
    """Remove temporary files that no process has locked."""
    if fcntl is None:
        return
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # still being written, or already gone
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power loss, where the system allows opening folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

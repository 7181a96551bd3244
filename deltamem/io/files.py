"""Files that are written whole or not at all."""

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

# Of temporary files. Short, so that a path may be as long as the file system allows.
PREFIX = ".deltamem-"
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Make sure that a path leads to a regular file, or to nothing.

    Whatever reads a pipe may wait for ever, and a rename would put a file in the place of a device.

    Raises:
        ValueError: it leads to something else; says what.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing, or nothing that can be reached: whatever opens it says so
        return
    if not stat.S_ISREG(mode):
        raise ValueError(f"{os.fspath(path)!r} is {KINDS.get(stat.S_IFMT(mode), 'something else')}, where a file belongs")


def write_atomically(path: str | os.PathLike[str], data: bytes, private: bool = True) -> None:
    """Write a file; one that is there is replaced in one step, or not at all.

    A process that is killed leaves a temporary file beside it, which the next one that writes to this folder removes.

    Args:
        path: the file.
        data: all of it.
        private: whether only its owner can read it, or whoever can read other files that its owner makes.

    Raises:
        ValueError: the path leads to something that is no regular file.
        OSError: the file cannot be written; the one that was there is untouched.
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
            with suppress(OSError):  # it is gone if an interrupt came after the rename
                os.unlink(temporary)
            raise
    with suppress(OSError):  # the file is complete and in its place; not every file system can sync a folder
        _sync_folder(path.parent)


@contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[int, str]]:
    """An open file and its path. It is locked meanwhile, which tells it from what a killed process left."""
    while True:
        handle, path = tempfile.mkstemp(dir=folder, prefix=PREFIX)
        lock = os.dup(handle)  # it outlives the file object
        if _lock(lock):
            break
        os.close(handle)  # another process took the file for a left-over before it was locked
        os.close(lock)
    try:
        yield handle, path
    finally:
        os.close(lock)


def _umask() -> int:
    """Which rights new files lack. It can only be read by setting it: what other threads make meanwhile is private."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _lock(handle: int) -> bool:
    """Lock a file; False if it was deleted before."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks, on which no left-over is removed either
            fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0


def _remove_left_over(folder: Path) -> None:
    """Remove the temporary files that no process has locked."""
    if fcntl is None:
        return
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is being written, or gone meanwhile
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a loss of power, where the system lets folders be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

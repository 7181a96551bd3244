"""Files of JSON lines that a process may have been killed while writing."""

from __future__ import annotations

from pathlib import Path

from deltamem.io.files import check_regular


def whole_lines(file: Path) -> tuple[list[str], str]:
    """The lines of a file, and what stands behind the last of them: the beginning of one that was broken off, or nothing.

    Lines end with a line feed alone, as texts in them may hold other separators. What is broken off may end within a character.

    Raises:
        ValueError: it is a pipe or a device.
    """
    check_regular(file)
    *lines, rest = file.read_bytes().split(b"\n")
    return [line.decode("utf-8") for line in lines], rest.decode("utf-8", errors="replace")

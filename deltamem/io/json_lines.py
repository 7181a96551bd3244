"""Reads JSON Lines files whose writer may have been killed."""

from __future__ import annotations

from pathlib import Path

from deltamem.io.files import check_regular


def whole_lines(file: Path) -> tuple[list[str], str]:
    """Return a file's complete lines, and the text after the last of them: a truncated line, or nothing.

    Only line feeds end a line, since texts may contain other separators. The truncated line may end within a character.

    Raises:
        ValueError: it is not a regular file.
    """
    check_regular(file)
    *lines, rest = file.read_bytes().split(b"\n")
    return [line.decode("utf-8") for line in lines], rest.decode("utf-8", errors="replace")

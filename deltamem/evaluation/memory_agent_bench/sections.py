"""Splits long texts into sections."""

from __future__ import annotations

import re
from collections.abc import Iterator

SEPARATORS = ("\n\n", "\n", ". ", " ")  # a text may be cut after these, preferably the first ones


def sections(text: str, size: int, separators: tuple[str, ...] = SEPARATORS) -> Iterator[str]:
    """Split a text into parts that are as long as possible and together make up the text.

    Args:
        text: any text.
        size: maximum characters of a part, unless a single word is longer.
        separators: where it may be cut, in order of preference.
    """
    if len(text) <= size or not separators:
        yield text
        return
    part = ""
    for piece in re.split(f"(?<={re.escape(separators[0])})", text):
        if len(part) + len(piece) <= size:
            part += piece
            continue
        if part:
            yield part
        *whole, part = sections(piece, size, separators[1:])
        yield from whole
    if part:
        yield part

"""Long texts in parts."""

from __future__ import annotations

import re
from collections.abc import Iterator

SEPARATORS = ("\n\n", "\n", ". ", " ")  # behind which a text may be cut, the better place first


def sections(text: str, size: int, separators: tuple[str, ...] = SEPARATORS) -> Iterator[str]:
    """Parts of a text, as long as possible, which together are the text.

    Args:
        text: any.
        size: characters of a part at most, unless a single word is longer.
        separators: behind which it may be cut.
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

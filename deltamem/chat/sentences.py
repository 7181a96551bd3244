"""Splits a text into sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

ENDS = (".", "!", "?", "…")
CLOSING = "\"'”’)]"  # quotes and brackets that may follow the end of a sentence
WORD = re.compile(r"\S+")
LOWER_CASE = re.compile(r"[a-z]")


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """The start and end of every sentence of a text that neither begins nor ends with white space.

    A sentence ends with its punctuation (and closing quotes or brackets), unless the text continues in lower case; at a line
    break; or with the text. The time is linear in the length of any text.
    """
    start = None
    words = [word.span() for word in WORD.finditer(text)]
    for (begin, end), (after, _) in pairwise([*words, (len(text), len(text))]):
        start = begin if start is None else start
        said = text[max(begin, start + 1) : end].rstrip(CLOSING)  # punctuation alone is not a sentence
        if said.endswith(ENDS) and not LOWER_CASE.match(text, after):
            yield start, end
        elif after == len(text):
            yield start, after
        elif (line_break := text.find("\n", end, after)) >= 0:
            yield start, line_break
        else:
            continue
        start = None

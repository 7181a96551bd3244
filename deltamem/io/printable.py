"""Text from elsewhere, made fit for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

# Cc: what steers a terminal. Cs: halves of characters, which no terminal's encoding has.
LEFT_OUT = {"Cc", "Cs"}


def printable(text: str) -> str:
    """A text without what steers a terminal, or cannot be printed at all.

    A model can be led to say such characters, and a file may have them in the name of a tensor.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character for character in text if character in "\n\t" or unicodedata.category(character) not in LEFT_OUT)


def all_printable(figures: Any) -> Any:
    """Figures, as JSON has them, with all texts in them made printable."""
    if isinstance(figures, str):
        return printable(figures)
    if isinstance(figures, Mapping):
        return {all_printable(name): all_printable(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [all_printable(value) for value in figures]
    return figures

"""Makes untrusted text safe to print in a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

# Cc: control characters. Cs: lone surrogates, which no encoding can represent.
LEFT_OUT = {"Cc", "Cs"}


def printable(text: str) -> str:
    """Remove control characters and unprintable characters from a text.

    A model can be made to generate such characters, and a file may have them in a tensor's name.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character for character in text if character in "\n\t" or unicodedata.category(character) not in LEFT_OUT)


def all_printable(figures: Any) -> Any:
    """Make all strings in JSON-like data printable."""
    if isinstance(figures, str):
        return printable(figures)
    if isinstance(figures, Mapping):
        return {all_printable(name): all_printable(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [all_printable(value) for value in figures]
    return figures

"""Keeps the folders of a user's machine out of pages and cards that are made to be shared."""

from __future__ import annotations

import re
from pathlib import PureWindowsPath

# An absolute path, perhaps after what says how to read it ("talk:/data/chats.jsonl", "--data=/data/chats.jsonl").
ABSOLUTE = re.compile(r"((?:[\w-]{2,}[:=])?)(?!//)((?:~|[A-Za-z]:)?[/\\].*)", re.DOTALL)


def shareable(text: str) -> str:
    """An option's value without the folders of an absolute path; any other text as it is."""
    match = ABSOLUTE.fullmatch(text)
    if match is None:
        return text
    return match[1] + (PureWindowsPath(match[2]).name or match[2])  # takes both kinds of slashes

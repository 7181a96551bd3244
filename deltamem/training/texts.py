"""Texts without questions: talk to be continued, and raw texts unrelated to any memory."""

from __future__ import annotations

import re
from pathlib import Path

from deltamem.training.chats import Chat
from deltamem.training.facts.episode import as_messages
from deltamem.training.facts.fillers import HELD_OUT_EVERY, chitchat, part_of
from deltamem.training.facts.vocabulary import Split, wording
from deltamem.training.records import read_records
from deltamem.training.sources import SOURCES, read_documents

BLANK_LINES = re.compile(r"\n\s*\n")


def chitchat_talk(split: Split) -> list[Chat]:
    """Load the chats of the package `chitchat-dataset` as talk; every tenth is held out.

    Args:
        split: "train"; any other split takes the held-out part.

    Raises:
        ValueError: the package is missing.
    """
    chats = (as_messages(conversation) for conversation in part_of(chitchat(), wording(split)))
    return [{"messages": messages, "talk": True} for messages in chats if len(messages) >= 2]


def raw_texts(source: str, split: Split) -> list[str]:
    """Load raw texts; every tenth is held out.

    Args:
        source: a .txt file, with its texts separated by blank lines; records `{"text": ...}` in any form `read_records` takes;
            or FORMAT:SOURCE, for the passages of a question-answering set.
        split: "train"; any other split takes the held-out part.

    Raises:
        ValueError: there are no such texts, or too few.
    """
    texts = [*part_of(_texts(source), wording(split))]
    if not texts:
        raise ValueError(f"text:{source} has fewer than {HELD_OUT_EVERY} texts, and every {HELD_OUT_EVERY}th is held out")
    return texts


def paragraphs(file: Path) -> list[str]:
    """Read the texts of a file, which blank lines separate.

    Raises:
        ValueError: the file is not UTF-8, or has no text.
    """
    try:
        texts = [text.strip() for text in BLANK_LINES.split(file.read_text(encoding="utf-8"))]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} cannot be read; give a text in UTF-8: {error}") from error
    if not any(texts):
        raise ValueError(f"{file} has no text; give texts with blank lines between them")
    return [text for text in texts if text]


def _texts(source: str) -> list[str]:
    kind, _, file = source.partition(":")
    if kind in SOURCES and file:
        return [passage for document in read_documents(kind, read_records(file)) for passage in document.passages]
    if source.endswith(".txt") and Path(source).is_file():
        return paragraphs(Path(source))
    return [record["text"].text() for record in read_records(source)]

"""Text without questions: talk to be read on, and raw texts that have nothing to do with a memory."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from deltamem.training.chats import Chat
from deltamem.training.facts.episode import as_messages
from deltamem.training.facts.fillers import HELD_OUT_EVERY, chitchat
from deltamem.training.facts.vocabulary import Split, wording
from deltamem.training.records import read_records
from deltamem.training.sources import SOURCES, read_documents

Item = TypeVar("Item")


def chitchat_talk(split: Split) -> list[Chat]:
    """The chats of the package `chitchat-dataset` as talk; every tenth is held out.

    Args:
        split: "train", or another for what is held out.

    Raises:
        ValueError: the package is missing.
    """
    chats = (as_messages(conversation) for conversation in _part([*chitchat()], split))
    return [{"messages": messages, "talk": True} for messages in chats if len(messages) >= 2]


def raw_texts(source: str, split: Split) -> list[str]:
    """Raw texts; every tenth is held out.

    Args:
        source: a file that ends in .txt, with empty lines between its texts; records `{"text": ...}` as `read_records` reads
            them; or FORMAT:SOURCE, the passages of a question-answering set.
        split: "train", or another for what is held out.

    Raises:
        ValueError: no such texts, or too few.
    """
    texts = _part(_texts(source), split)
    if not texts:
        raise ValueError(f"text:{source} has fewer than {HELD_OUT_EVERY} texts, and every {HELD_OUT_EVERY}th is held out")
    return texts


def _texts(source: str) -> list[str]:
    kind, _, file = source.partition(":")
    if kind in SOURCES and file:
        return [passage for document in read_documents(kind, read_records(file)) for passage in document.passages]
    if source.endswith(".txt") and Path(source).is_file():
        return [text.strip() for text in Path(source).read_text(encoding="utf-8").split("\n\n") if text.strip()]
    return [record["text"].text() for record in read_records(source)]


def _part(items: list[Item], split: Split) -> list[Item]:
    """The tenth that is held out, or the rest."""
    held_out = [item for number, item in enumerate(items, 1) if number % HELD_OUT_EVERY == 0]
    if wording(split) == "held_out":
        return held_out
    return [item for number, item in enumerate(items, 1) if number % HELD_OUT_EVERY]

"""Texts of any kind: raw texts or chats."""

from __future__ import annotations

from collections.abc import Sequence

from deltamem.chat.tokens import Message
from deltamem.evaluation.benchmark_data import benchmark_records
from deltamem.evaluation.task import Options
from deltamem.training.chats import read_chats
from deltamem.training.given import Given
from deltamem.training.texts import paragraphs

AnyText = str | Sequence[Message]  # a raw text or a chat


def read_texts(name: str, options: Options) -> list[AnyText]:
    """Read the texts of a task's data.

    Args:
        name: the task's name.
        options: name the data: records `{"text": ...}` or `{"messages": [...]}`, or a `.txt` file of raw texts separated by
            blank lines.

    Raises:
        ValueError: the data is missing or malformed.
    """
    if options.data is not None and options.data.suffix == ".txt" and options.data.is_file():
        return [*paragraphs(options.data)]
    return [_text(record) for record in benchmark_records(name, None, options)]


def _text(record: Given) -> AnyText:
    if record["text"].is_given:
        return record["text"].text()
    messages: Sequence[Message] = read_chats([record])[0]["messages"]
    return messages

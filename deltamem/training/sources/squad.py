"""SQuAD: paragraphs with questions whose answers stand in them; the official file's format, and the Hub's rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from deltamem.training.documents import Document


def documents(records: Iterable[Any]) -> Iterator[Document]:
    """One document for each paragraph. Questions without an answer (SQuAD 2) are left out.

    Args:
        records: articles `{"paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}`, or rows
            `{"context", "question", "answers": {"text": [...]}}`.
    """
    rows: dict[str, list[tuple[str, str]]] = {}  # by paragraph, whose rows follow each other
    for record in records:
        if "paragraphs" not in record:
            rows.setdefault(record["context"], []).extend(_asked(record["question"], record["answers"]["text"]))
            continue
        for paragraph in record["paragraphs"]:
            asked = (_asked(qa["question"], [answer["text"] for answer in qa["answers"]]) for qa in paragraph["qas"])
            yield Document((paragraph["context"],), tuple(pair for pairs in asked for pair in pairs))
    for context, questions in rows.items():
        yield Document((context,), tuple(questions))


def _asked(question: str, answers: list[str]) -> list[tuple[str, str]]:
    """The question with its first answer; nothing if there is none."""
    return [(question, answer) for answer in answers[:1]]

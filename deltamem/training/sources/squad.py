"""SQuAD: paragraphs with questions whose answers they contain; the official file's format, and the Hub's rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deltamem.training.documents import Document
from deltamem.training.given import Given


def documents(records: Iterable[Given]) -> Iterator[Document]:
    """One document for each paragraph. Questions without an answer (SQuAD 2) are left out.

    Args:
        records: articles `{"paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}`, or rows
            `{"context", "question", "answers": {"text": [...]}}`.
    """
    rows: dict[str, list[tuple[str, str]]] = {}  # by paragraph, whose rows follow each other
    for record in records:
        if not record["paragraphs"].is_given:
            answers = record["answers"]["text"].items(empty=True)
            rows.setdefault(record["context"].text(), []).extend(_asked(record["question"], answers))
            continue
        for paragraph in record["paragraphs"].items(empty=True):
            asked = [
                pair
                for qa in paragraph["qas"].items(empty=True)
                for pair in _asked(qa["question"], [answer["text"] for answer in qa["answers"].items(empty=True)])
            ]
            yield Document((paragraph["context"].text(),), tuple(asked))
    for context, questions in rows.items():
        yield Document((context,), tuple(questions))


def _asked(question: Given, answers: list[Given]) -> list[tuple[str, str]]:
    """The question with its first answer; nothing if there is none."""
    return [(question.text(), answer.text()) for answer in answers][:1]

"""Natural Questions, open, with retrieved passages: each question has the passage that answers it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from deltamem.training.documents import Document


def documents(records: Iterable[Any]) -> Iterator[Document]:
    """One document for each question: its gold passages, without distractors.

    Args:
        records: `{"question", "answers": [...], "ctxs": [{"title", "text", "isgold"}]}`.
    """
    for record in records:
        gold = [passage for passage in record["ctxs"] if passage.get("isgold", True)]
        passages = tuple(f"{passage['title']}: {passage['text']}" for passage in gold)
        yield Document(passages, tuple((record["question"], answer) for answer in record["answers"][:1]))

"""HotpotQA: a question that takes two of ten paragraphs; the official file's format, and the Hub's rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from deltamem.training.documents import Document


def documents(records: Iterable[Any]) -> Iterator[Document]:
    """One document for each question, all of its paragraphs in their order.

    Args:
        records: `{"question", "answer", "context": [[title, [sentence, ...]], ...]}`, or with the context
            `{"title": [...], "sentences": [[...], ...]}`.
    """
    for record in records:
        context = record["context"]
        paragraphs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        passages = tuple(f"{title}: {''.join(sentences).strip()}" for title, sentences in paragraphs)
        yield Document(passages, ((record["question"], record["answer"]),))

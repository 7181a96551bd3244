"""HotpotQA: a question that takes two of ten paragraphs; the official file's format, and the Hub's rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deltamem.training.documents import Document
from deltamem.training.given import Given


def documents(records: Iterable[Given]) -> Iterator[Document]:
    """One document for each question, all of its paragraphs in their order.

    Args:
        records: `{"question", "answer", "context": [[title, [sentence, ...]], ...]}`, or with the context
            `{"title": [...], "sentences": [[...], ...]}`.
    """
    for record in records:
        passages = tuple(f"{title}: {text.strip()}" for title, text in paragraphs(record["context"]))
        yield Document(passages, ((record["question"].text(), record["answer"].text()),))


def paragraphs(context: Given) -> list[tuple[str, str]]:
    """Titles with their texts, of the official file's pairs or of the Hub's two lists."""
    if isinstance(context.value, dict):
        titles, sentences = context["title"].items(), context["sentences"].items()
        if len(titles) != len(sentences):
            context["sentences"].refuse(f"as many as there are titles, {len(titles)}")
        pairs = [*zip(titles, sentences, strict=True)]
    else:
        pairs = context.pairs()
    return [(title.text(empty=True), "".join(several.texts(empty=True))) for title, several in pairs]

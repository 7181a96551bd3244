"""Natural Questions, open, with retrieved passages: each question has the passage that answers it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deltamem.training.documents import Document
from deltamem.training.given import Given


def documents(records: Iterable[Given]) -> Iterator[Document]:
    """One document for each question: its gold passages, without distractors.

    Args:
        records: `{"question", "answers": [...], "ctxs": [{"title", "text", "isgold"}]}`.
    """
    for record in records:
        passages = [_passage(passage) for passage in record["ctxs"].items(empty=True)]
        answers = [answer.text() for answer in record["answers"].items(empty=True)]
        gold = tuple(passage for passage in passages if passage is not None)
        yield Document(gold, tuple((record["question"].text(), answer) for answer in answers[:1]))


def _passage(passage: Given) -> str | None:
    """The title and the text of a passage; None for a distractor."""
    is_gold = passage["isgold"]
    if is_gold.is_given and not isinstance(is_gold.value, bool):
        is_gold.refuse("true or false")
    text = f"{passage['title'].text(empty=True)}: {passage['text'].text()}"
    return None if is_gold.value is False else text

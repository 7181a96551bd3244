"""Question-answering sets as documents: one module for each format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from deltamem.training.documents import Document
from deltamem.training.given import Given
from deltamem.training.sources import hotpotqa, natural_questions, qasper, squad

SOURCES: dict[str, Callable[[Iterable[Given]], Iterator[Document]]] = {
    "squad": squad.documents,
    "qasper": qasper.documents,
    "nq": natural_questions.documents,
    "hotpotqa": hotpotqa.documents,
}


def read_documents(source: str, records: Iterable[Given]) -> list[Document]:
    """The documents of a set, those that have a question.

    Raises:
        ValueError: an unknown source, records of another format, or none with a question.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; choose one of {', '.join(SOURCES)}")
    documents = [document for document in SOURCES[source](records) if document.questions and document.passages]
    if not documents:
        raise ValueError(f"no record in the format of {source} has a passage and a question with an answer")
    return documents

"""QASPER: questions about scientific papers, in the Hub's format. The paper's own training set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deltamem.training.documents import Document


def documents(records: Iterable[Any]) -> Iterator[Document]:
    """One document for each paper: title and abstract, then a passage for each section. Unanswerable questions are left out.

    Args:
        records: `{"title", "abstract", "full_text": {"section_name": [...], "paragraphs": [[...], ...]},
            "qas": {"question": [...], "answers": [{"answer": [...]}, ...]}}`.
    """
    for record in records:
        text = record["full_text"]
        sections = zip(text["section_name"], text["paragraphs"], strict=True)
        passages = [f"{record['title']}\n{record['abstract']}"]
        passages += ["\n".join([name or "", *paragraphs]).strip() for name, paragraphs in sections]
        asked = zip(record["qas"]["question"], record["qas"]["answers"], strict=True)
        answered = [(question, _answer(answers["answer"])) for question, answers in asked]
        questions = tuple((question, answer) for question, answer in answered if answer is not None)
        yield Document(tuple(passage for passage in passages if passage), questions)


def _answer(answers: Iterable[Mapping[str, Any]]) -> str | None:
    """The first annotator's answer that is one: free text, spans of the paper, or yes and no."""
    for answer in answers:
        if answer["unanswerable"]:
            continue
        if answer["free_form_answer"]:
            return str(answer["free_form_answer"])
        if answer["extractive_spans"]:
            return ", ".join(answer["extractive_spans"])
        if answer["yes_no"] is not None:
            return "Yes" if answer["yes_no"] else "No"
    return None

"""QASPER: questions about scientific papers, in the Hub's format. The paper's own training set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deltamem.training.documents import Document
from deltamem.training.given import Given


def documents(records: Iterable[Given]) -> Iterator[Document]:
    """One document for each paper: title and abstract, then a passage for each section. Unanswerable questions are left out.

    Args:
        records: `{"title", "abstract", "full_text": {"section_name": [...], "paragraphs": [[...], ...]},
            "qas": {"question": [...], "answers": [{"answer": [...]}, ...]}}`.
    """
    for record in records:
        names, paragraphs = (record["full_text"][name].items(empty=True) for name in ("section_name", "paragraphs"))
        if len(names) != len(paragraphs):
            record["full_text"]["paragraphs"].refuse(f"as many as there are sections, {len(names)}")
        passages = [f"{record['title'].text(empty=True)}\n{record['abstract'].text(empty=True)}"]
        for name, texts in zip(names, paragraphs, strict=True):
            heading = name.text(empty=True) if name.is_given else ""
            passages.append("\n".join([heading, *texts.texts(empty=True)]).strip())
        asked, answers = (record["qas"][name].items(empty=True) for name in ("question", "answers"))
        if len(asked) != len(answers):
            record["qas"]["answers"].refuse(f"as many as there are questions, {len(asked)}")
        answered = [(one.text(), _answer(given["answer"].items(empty=True))) for one, given in zip(asked, answers, strict=True)]
        questions = tuple((question, answer) for question, answer in answered if answer is not None)
        yield Document(tuple(passage for passage in passages if passage), questions)


def _answer(answers: list[Given]) -> str | None:
    """The first answer among the annotators': free text, spans of the paper, or yes and no."""
    return next((answer for answer in [*map(_of_one, answers)] if answer is not None), None)


def _of_one(answer: Given) -> str | None:
    spans = answer["extractive_spans"].texts()
    free, yes_no = answer["free_form_answer"].text(empty=True), answer["yes_no"]
    if yes_no.is_given and not isinstance(yes_no.value, bool):
        yes_no.refuse("true, false or null")
    if not isinstance(answer["unanswerable"].value, bool):
        answer["unanswerable"].refuse("true or false")
    if answer["unanswerable"].value:
        return None
    if free.strip() or spans:
        return free or ", ".join(spans)
    return {True: "Yes", False: "No"}[yes_no.value] if yes_no.is_given else None

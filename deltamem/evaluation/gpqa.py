"""GPQA-Diamond: questions that are hard for experts, zero-shot, scored by ranking the letters of four options."""

from __future__ import annotations

from hashlib import sha256

from deltamem.evaluation.arc_easy import MultipleChoice
from deltamem.evaluation.off_task import OffTask, off_task
from deltamem.evaluation.task import Options, share
from deltamem.training.given import Given

NAME = "gpqa_diamond"
HUB = ("Idavidrein/gpqa", "gpqa_diamond", "train")
METRICS = {"acc": share("acc")}
RIGHT = "Correct Answer"
WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = ("(A)", "(B)", "(C)", "(D)")


def tasks(options: Options) -> list[OffTask]:
    """Create the task, with lm-evaluation-harness's prompt and choices, but our own order of the options.

    Raises:
        ValueError: the data is missing or malformed.
    """
    return [off_task(NAME, HUB, METRICS, _question, options)]


def _question(record: Given) -> MultipleChoice:
    asked = record["Question"].text().strip()
    texts = {column: record[column].text() for column in (RIGHT, *WRONG)}
    order = sorted(texts, key=lambda column: _hash(asked, texts[column]))
    options = "\n".join(f"{letter} {texts[column].strip()}" for letter, column in zip(LETTERS, order, strict=True))
    query = f"What is the correct answer to this question:{asked}\nChoices:\n{options}"
    return MultipleChoice(query, LETTERS, order.index(RIGHT))


def _hash(question: str, option: str) -> str:
    """Sort key that shuffles a question's options deterministically, regardless of which one is right."""
    return sha256(f"{question}\n{option.strip()}".encode()).hexdigest()

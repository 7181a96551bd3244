"""GPQA-Diamond: questions that experts find hard, zero-shot, the letter of the answer ranked among four."""

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
    """The task, as one; prompt and choices are those of lm-evaluation-harness, but the order of the options.

    Raises:
        ValueError: no data, or of another format.
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
    """Shuffles the options of a question: the same everywhere, and nothing to do with which one is right."""
    return sha256(f"{question}\n{option.strip()}".encode()).hexdigest()

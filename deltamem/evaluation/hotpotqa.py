"""HotpotQA (arXiv 1809.09600) with distractors: questions that need two of ten paragraphs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from deltamem.evaluation.answer_scores import exact_match, hotpotqa_f1
from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.short_answers import METRICS
from deltamem.evaluation.task import Options
from deltamem.training.given import Given
from deltamem.training.sources.hotpotqa import paragraphs

NAME = "hotpotqa"
HUB = ("hotpotqa/hotpot_qa", "distractor", "validation")
INSTRUCTION = "Answer the question with a short phrase, a name, or yes or no.\nQuestion: {question}\nShort answer:"
MAX_NEW_TOKENS = 32
CANDIDATES = 10
RETRIEVED = 2  # as many paragraphs as a question needs


@dataclass(frozen=True)
class _Record:
    question: str
    answer: str
    kind: str | None
    paragraphs: tuple[str, ...]

    @classmethod
    def from_record(cls, record: Given) -> _Record:
        told = tuple(f"{title}\n{text}" for title, text in paragraphs(record["context"]))
        kind = record["type"].text() if record["type"].is_given else None
        return cls(record["question"].text(), record["answer"].text(), kind, told)


def tasks(options: Options) -> list[HistoryTask]:
    """Create the task.

    Raises:
        ValueError: the data is missing or malformed.
    """
    records = [_Record.from_record(record) for record in benchmark_records(NAME, HUB, options)]
    answers = sorted({record.answer for record in records})
    numbers = sampled_numbers(len(records), options)
    return [
        HistoryTask(
            name=NAME,
            histories={str(number): History(records[number].paragraphs, records[number].paragraphs) for number in numbers},
            questions=[_question(number, records[number], answers) for number in numbers],
            judge=judge,
            metrics=METRICS,
            identity=identity(options),
            max_new_tokens=MAX_NEW_TOKENS,
            first_line=True,
            retrieved=RETRIEVED,
        )
    ]


def judge(question: HistoryQuestion, prediction: str) -> dict[str, float]:
    """Compute the official scores."""
    return {"em": exact_match(prediction, question.golds[0]), "f1": hotpotqa_f1(prediction, question.golds[0])}


def _question(number: int, record: _Record, answers: Sequence[str]) -> HistoryQuestion:
    others = [other for other in answers if other.lower() not in (record.answer.lower(), "yes", "no")]
    wrong = random.Random(f"{NAME}-{number}").sample(others, min(CANDIDATES - 1, len(others)))
    prompt = INSTRUCTION.format(question=record.question)
    return HistoryQuestion(number, str(number), prompt, (record.answer,), tuple(wrong), record.kind, record.question)

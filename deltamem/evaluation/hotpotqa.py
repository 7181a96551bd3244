"""HotpotQA (arXiv 1809.09600) with distractors: questions that need two of ten paragraphs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from deltamem.evaluation.answer_scores import exact_match, hotpotqa_f1
from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.history_task import History, HistoryQuestion, HistoryTask
from deltamem.evaluation.task import Metric, Options, mean, share

NAME = "hotpotqa"
HUB = ("hotpotqa/hotpot_qa", "distractor", "validation")
INSTRUCTION = "Answer the question with a short phrase, a name, or yes or no.\nQuestion: {question}\nShort answer:"
MAX_NEW_TOKENS = 32
CANDIDATES = 10
RETRIEVED = 2  # as many paragraphs as a question needs


def tasks(options: Options) -> list[HistoryTask]:
    """The task, as one.

    Raises:
        ValueError: no data, or of another format.
    """
    records = [_checked(record, number) for number, record in enumerate(benchmark_records(NAME, HUB, options), 1)]
    answers = sorted({record["answer"] for record in records})
    numbers = sampled_numbers(len(records), options)
    return [
        HistoryTask(
            name=NAME,
            histories={str(number): _history(records[number]) for number in numbers},
            questions=[_question(number, records[number], answers) for number in numbers],
            judge=judge,
            metrics={"em": share("em"), "f1": Metric("f1", mean)},
            identity=identity(options),
            max_new_tokens=MAX_NEW_TOKENS,
            first_line=True,
            retrieved=RETRIEVED,
        )
    ]


def judge(question: HistoryQuestion, prediction: str) -> dict[str, float]:
    """The official scores."""
    return {"em": exact_match(prediction, question.golds[0]), "f1": hotpotqa_f1(prediction, question.golds[0])}


def _question(number: int, record: Mapping[str, Any], answers: Sequence[str]) -> HistoryQuestion:
    others = [other for other in answers if other.lower() not in (record["answer"].lower(), "yes", "no")]
    wrong = random.Random(f"{NAME}-{number}").sample(others, min(CANDIDATES - 1, len(others)))
    prompt = INSTRUCTION.format(question=record["question"])
    return HistoryQuestion(
        number, str(number), prompt, (record["answer"],), tuple(wrong), record.get("type"), record["question"]
    )


def _history(record: Mapping[str, Any]) -> History:
    paragraphs = tuple(f"{title}\n{''.join(sentences)}" for title, sentences in _paragraphs(record["context"]))
    return History(paragraphs, paragraphs)


def _paragraphs(context: Any) -> list[tuple[str, Sequence[str]]]:
    """Titles with their sentences, of the official file's pairs or of the Hub's two lists."""
    if isinstance(context, Mapping):
        return list(zip(context["title"], context["sentences"], strict=True))
    return [(title, sentences) for title, sentences in context]


def _checked(record: Any, number: int) -> Mapping[str, Any]:
    if isinstance(record, Mapping) and all(isinstance(record.get(key), str) for key in ("question", "answer")):
        try:
            if _paragraphs(record["context"]):
                return record
        except (KeyError, TypeError, ValueError):
            pass
    raise ValueError(
        f'{NAME}, record {number}: expected {{"question", "answer", "context": [[title, [sentence, ...]], ...]}}, got '
        f"{record!r:.200}"
    )

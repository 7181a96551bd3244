"""LoCoMo (arXiv 2402.17753): questions about conversations that go on for months, in the categories 1 to 4."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deltamem.evaluation.answer_scores import locomo_f1, locomo_multi_f1
from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.extras import needs
from deltamem.evaluation.history_task import History, HistoryQuestion, HistoryTask
from deltamem.evaluation.sampling import Sampling
from deltamem.evaluation.task import Metric, Options, mean

NAME = "locomo"
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open", 4: "single-hop"}  # the fifth has no answer
SYSTEM = "You answer questions about a conversation."
INSTRUCTION = "Answer with a short phrase, or a date.\nQuestion: {question}\nShort answer:"
# The published sampling; the seed is 42 plus the question's number.
SAMPLING, SEED = Sampling(temperature=0.4, top_p=0.9, top_k=10), 42
MAX_NEW_TOKENS = 50
CANDIDATES = 5
RETRIEVED = 5  # turns, of some forty tokens each
SESSION = re.compile(r"session_(\d+)")


def tasks(options: Options) -> list[HistoryTask]:
    """The task, as one.

    Raises:
        ValueError: no data, or of another format; the stemmer is missing.
    """
    needs("nltk")
    records = [_checked(record, number) for number, record in enumerate(benchmark_records(NAME, None, options), 1)]
    conversations = {str(record["sample_id"]): record for record in records}
    asked = [(key, question) for key, record in conversations.items() for question in _questions(record)]
    golds = {
        category: sorted({_gold(question) for _, question in asked if question["category"] == category})
        for category in CATEGORIES
    }
    numbers = sampled_numbers(len(asked), options)
    questions = [_question(number, *asked[number], golds) for number in numbers]
    return [
        HistoryTask(
            name=NAME,
            histories={key: _history(record["conversation"]) for key, record in conversations.items()},
            questions=questions,
            judge=judge,
            metrics={"f1": Metric("f1", mean)},
            identity={**identity(options), "greedy": options.greedy},
            max_new_tokens=MAX_NEW_TOKENS,
            system=SYSTEM,
            sampling=None if options.greedy else SAMPLING,
            retrieved=RETRIEVED,
            seed=SEED + options.seed,
        )
    ]


def judge(question: HistoryQuestion, prediction: str) -> dict[str, float]:
    """The official score of an answer: of questions with several hops the parts are matched."""
    score = locomo_multi_f1 if question.group == CATEGORIES[1] else locomo_f1
    return {"f1": score(prediction, question.golds[0])}


def _questions(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (question for question in record["qa"] if question.get("category") in CATEGORIES)


def _question(number: int, key: str, question: Mapping[str, Any], golds: Mapping[int, Sequence[str]]) -> HistoryQuestion:
    gold, category = _gold(question), question["category"]
    others = [other for other in golds[category] if other.lower() != gold.lower()]
    wrong = random.Random(f"{NAME}-{number}").sample(others, min(CANDIDATES - 1, len(others)))
    prompt = INSTRUCTION.format(question=question["question"])
    return HistoryQuestion(number, key, prompt, (gold,), tuple(wrong), CATEGORIES[category], question["question"])


def _gold(question: Mapping[str, Any]) -> str:
    """The answer; of open questions what stands before the first semicolon."""
    answer = str(question["answer"])
    return answer.split(";")[0].strip() if question["category"] == 3 else answer


def _history(conversation: Mapping[str, Any]) -> History:
    numbers = sorted(int(found[1]) for found in map(SESSION.fullmatch, conversation) if found)
    sessions = [(conversation[f"session_{number}_date_time"], conversation[f"session_{number}"]) for number in numbers]
    sections = ["\n".join([f"Conversation of {date}:", *map(_said, turns)]) for date, turns in sessions]
    passages = [f"({date}) {_said(turn)}" for date, turns in sessions for turn in turns]
    return History(tuple(sections), tuple(passages))


def _said(turn: Mapping[str, Any]) -> str:
    photo = f" [shares a photo: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
    return f"{turn['speaker']}: {turn['text']}{photo}"


def _checked(record: Any, number: int) -> Mapping[str, Any]:
    if (
        isinstance(record, Mapping)
        and "sample_id" in record
        and isinstance(record.get("qa"), list)
        and isinstance(record.get("conversation"), Mapping)
        and "session_1" in record["conversation"]
        and all("answer" in question and "question" in question for question in _questions(record))
    ):
        return record
    raise ValueError(
        f'{NAME}, record {number}: expected {{"sample_id", "conversation": {{"session_1", "session_1_date_time", ...}}, "qa": '
        f'[{{"question", "answer", "category"}}, ...]}}, got {record!r:.200}'
    )

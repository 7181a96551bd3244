"""LoCoMo (arXiv 2402.17753): questions about conversations that span months, in categories 1 to 4."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltamem.evaluation.answer_scores import locomo_f1, locomo_multi_f1
from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.extras import needs
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.sampling import Sampling
from deltamem.evaluation.task import Metric, Options, mean
from deltamem.training.given import Given

NAME = "locomo"
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open", 4: "single-hop"}  # the fifth has no answer
OPEN, UNANSWERED = 3, 5
SYSTEM = "You answer questions about a conversation."
INSTRUCTION = "Answer with a short phrase, or a date.\nQuestion: {question}\nShort answer:"
# Sampling as published; the seed is 42 plus the question's number.
SAMPLING, SEED = Sampling(temperature=0.4, top_p=0.9, top_k=10), 42
MAX_NEW_TOKENS = 50
CANDIDATES = 5
RETRIEVED = 5  # turns, of about forty tokens each
SESSION = re.compile(r"session_(\d+)")


@dataclass(frozen=True)
class Asked:
    """A question about a conversation.

    Args:
        conversation: the conversation's key.
        text, gold, category: the question, its answer, and the number of its category in `CATEGORIES`.
    """

    conversation: str
    text: str
    gold: str
    category: int


def tasks(options: Options) -> list[HistoryTask]:
    """Create the task.

    Raises:
        ValueError: the data is missing or malformed; the stemmer is missing.
    """
    needs("nltk")
    histories: dict[str, History] = {}
    asked: list[Asked] = []
    for record in benchmark_records(NAME, None, options):
        key = record["sample_id"].text_or_number()
        if key in histories:
            record["sample_id"].refuse("another one: a record before has it")
        histories[key] = _history(record["conversation"])
        asked += _asked(key, record["qa"])
    if not asked:
        raise ValueError(f"{NAME}: the data have no question of the categories {', '.join(map(str, CATEGORIES))}; add some")
    golds = {category: sorted({one.gold for one in asked if one.category == category}) for category in CATEGORIES}
    return [
        HistoryTask(
            name=NAME,
            histories=histories,
            questions=[_question(number, asked[number], golds) for number in sampled_numbers(len(asked), options)],
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
    """The official score of an answer; multi-hop questions are matched part by part."""
    score = locomo_multi_f1 if question.group == CATEGORIES[1] else locomo_f1
    return {"f1": score(prediction, question.golds[0])}


def _question(number: int, asked: Asked, golds: Mapping[int, Sequence[str]]) -> HistoryQuestion:
    others = [other for other in golds[asked.category] if other.lower() != asked.gold.lower()]
    wrong = random.Random(f"{NAME}-{number}").sample(others, min(CANDIDATES - 1, len(others)))
    prompt = INSTRUCTION.format(question=asked.text)
    group = CATEGORIES[asked.category]
    return HistoryQuestion(number, asked.conversation, prompt, (asked.gold,), tuple(wrong), group, asked.text)


def _asked(key: str, questions: Given) -> Iterator[Asked]:
    """The questions that have an answer."""
    for question in questions.items():
        category = question["category"].number(range(1, UNANSWERED + 1))
        if category == UNANSWERED:
            continue
        gold = question["answer"].text_or_number()
        if category == OPEN:  # only the text before the first semicolon counts
            gold = gold.split(";")[0].strip() or question["answer"].refuse("an answer before the first semicolon")
        yield Asked(key, question["question"].text(), gold, category)


def _history(conversation: Given) -> History:
    numbers = sorted(int(found[1]) for found in map(SESSION.fullmatch, conversation.mapping()) if found)
    sections: list[str] = []
    passages: list[str] = []
    for number in numbers:
        date = conversation[f"session_{number}_date_time"].text()
        said = [_said(turn) for turn in conversation[f"session_{number}"].items()]
        sections.append("\n".join([f"Conversation of {date}:", *said]))
        passages += [f"({date}) {turn}" for turn in said]
    if not numbers:
        conversation["session_1"].refuse('the turns of a session, [{"speaker", "text"}, ...]')
    return History(tuple(sections), tuple(passages))


def _said(turn: Given) -> str:
    caption = turn["blip_caption"]
    photo = f" [shares a photo: {caption.text()}]" if caption.is_given and caption.value != "" else ""
    return f"{turn['speaker'].text()}: {turn['text'].text(empty=bool(photo))}{photo}"

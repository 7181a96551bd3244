"""Schema-Guided Dialogue (arXiv 1909.05855): what was settled on in a dialogue with a service, asked for when it is over."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltamem.chat.tokens import Message
from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.short_answers import METRICS, squad_judge
from deltamem.evaluation.task import Options
from deltamem.training.chats import read_chats
from deltamem.training.given import Given

NAME = "dialogue"
PROMPT = "Remind me, what was the {slot}? Answer with that alone."
CANDIDATES = 10
MAX_NEW_TOKENS = 16
RETRIEVED = 2  # messages


@dataclass(frozen=True)
class Settled:
    """What was settled on in a dialogue.

    Args:
        dialogue: its place in the data.
        slot, value: such as "pickup_city" and "San Jose".
    """

    dialogue: int
    slot: str
    value: str


def tasks(options: Options) -> list[HistoryTask]:
    """The task, as one.

    Raises:
        ValueError: no data, or of another format; nothing in them that can be asked.
    """
    records = benchmark_records(NAME, None, options)
    chats: list[Sequence[Message]] = [chat["messages"] for chat in read_chats(records)]
    told = [[message["content"].casefold() for message in chat] for chat in chats]
    settled = [one for place, record in enumerate(records) for one in _settled(place, record, told[place])]
    questions = [*_questions(settled, told, options.seed)]
    if not questions:
        raise ValueError(
            f"{NAME}: no slot of the data has {CANDIDATES} values in the words of the dialogues; give more dialogues"
        )
    chosen = [questions[number] for number in sampled_numbers(len(questions), options)]
    return [
        HistoryTask(
            name=NAME,
            histories={str(place): History.of_chat(chat) for place, chat in enumerate(chats)},
            questions=chosen,
            judge=squad_judge,
            metrics=METRICS,
            identity=identity(options),
            max_new_tokens=MAX_NEW_TOKENS,
            first_line=True,
            retrieved=RETRIEVED,
            ranked_per_token=True,
        )
    ]


def is_said(value: str, text: str) -> bool:
    """Whether a text has a value as whole words, and not in a longer word or number; both without their cases."""
    whole = rf"(?<!\w)(?<!\d[.:,]){re.escape(value)}(?!\w|[.:,]\d)"
    return value in text and re.search(whole, text) is not None


def _questions(settled: Sequence[Settled], told: Sequence[Sequence[str]], seed: int) -> Iterator[HistoryQuestion]:
    """A question for whatever was settled on, where there are enough candidates that its dialogue does not say.

    Args:
        settled: in all dialogues.
        told: the messages of each dialogue, without their cases.
        seed: of the candidates.
    """
    values: Mapping[str, dict[str, str]] = defaultdict(dict)  # of each slot, by the value without its case
    for one in settled:
        values[one.slot].setdefault(one.value.casefold(), one.value)
    for number, one in enumerate(settled):
        text = "\n".join(told[one.dialogue])
        others = [value for folded, value in sorted(values[one.slot].items()) if not is_said(folded, text)]
        if len(others) >= CANDIDATES - 1:
            wrong = random.Random(f"{NAME}-{seed}-{number}").sample(others, CANDIDATES - 1)
            prompt = PROMPT.format(slot=one.slot.replace("_", " "))
            yield HistoryQuestion(number, str(one.dialogue), prompt, (one.value,), tuple(wrong))


def _settled(dialogue: int, record: Given, told: Sequence[str]) -> Iterator[Settled]:
    """The slots of a dialogue with their newest values, where one was said by the turn in which it was settled on.

    Args:
        dialogue: its place in the data.
        record: has its facts.
        told: its messages, without their cases.
    """
    values: Mapping[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))  # of each slot, by turn
    for fact in record["facts"].items(empty=True):
        turn = fact["turn"].number(range(len(told)))
        values[fact["slot"].text()][turn].add(fact["value"].text())
    for slot, by_turn in values.items():
        newest = max(by_turn)
        value, *more = {value.casefold(): value for value in sorted(by_turn[newest])}.items()
        # Of two services, one slot may have two values.
        if not more and is_said(value[0], "\n".join(told[: newest + 1])):
            yield Settled(dialogue, slot, value[1])

"""Schema-Guided Dialogue (arXiv 1909.05855): what was settled on in a dialogue with a service, asked for when it is over."""

from __future__ import annotations

import random
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
    told = ["\n".join(message["content"] for message in chat).casefold() for chat in chats]
    settled = [one for place, record in enumerate(records) for one in _settled(place, record)]
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


def _questions(settled: Sequence[Settled], told: Sequence[str], seed: int) -> Iterator[HistoryQuestion]:
    """A question for whatever was settled on in words of its dialogue, where there are enough candidates that were not.

    Args:
        settled: in all dialogues.
        told: the text of each dialogue, without its cases.
        seed: of the candidates.
    """
    values: Mapping[str, dict[str, str]] = defaultdict(dict)  # of each slot, by the value without its case
    for one in settled:
        values[one.slot].setdefault(one.value.casefold(), one.value)
    for number, one in enumerate(settled):
        text = told[one.dialogue]
        others = [value for folded, value in sorted(values[one.slot].items()) if folded not in text]
        if one.value.casefold() in text and len(others) >= CANDIDATES - 1:
            wrong = random.Random(f"{NAME}-{seed}-{number}").sample(others, CANDIDATES - 1)
            prompt = PROMPT.format(slot=one.slot.replace("_", " "))
            yield HistoryQuestion(number, str(one.dialogue), prompt, (one.value,), tuple(wrong))


def _settled(dialogue: int, record: Given) -> Iterator[Settled]:
    """The slots of a dialogue that have one value in it; of two services, one slot may have two."""
    values: Mapping[str, dict[str, str]] = defaultdict(dict)
    for fact in record["facts"].items(empty=True):
        value = fact["value"].text()
        values[fact["slot"].text()][value.casefold()] = value
    for slot, found in values.items():
        if len(found) == 1:
            yield Settled(dialogue, slot, *found.values())

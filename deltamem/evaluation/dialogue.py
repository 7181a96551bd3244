"""Schema-Guided Dialogue (arXiv 1909.05855): asks for what was agreed on in a dialogue with a service, once it is over."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltamem.chat.tokens import Message
from deltamem.evaluation.answer_scores import is_said
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
    """A slot value agreed on in a dialogue.

    Args:
        dialogue: the dialogue's index in the data.
        slot, value: for example "pickup_city" and "San Jose".
    """

    dialogue: int
    slot: str
    value: str


def tasks(options: Options) -> list[HistoryTask]:
    """Create the task.

    Raises:
        ValueError: the data is missing or malformed; nothing in them that can be asked.
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


def _questions(settled: Sequence[Settled], told: Sequence[Sequence[str]], seed: int) -> Iterator[HistoryQuestion]:
    """Yield a question for each settled slot that has enough candidates which its dialogue does not mention.

    Args:
        settled: the settled slots of all dialogues.
        told: the messages of each dialogue, case-folded.
        seed: seeds the choice of candidates.
    """
    values: Mapping[str, dict[str, str]] = defaultdict(dict)  # by slot and case-folded value
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
    """Yield the newest value of each slot of a dialogue, if it was mentioned by the turn that settled it.

    Args:
        dialogue: the dialogue's index in the data.
        record: the record with its facts.
        told: its messages, case-folded.
    """
    values: Mapping[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))  # by slot and turn
    for fact in record["facts"].items(empty=True):
        turn = fact["turn"].number(range(len(told)))
        values[fact["slot"].text()][turn].add(fact["value"].text())
    for slot, by_turn in values.items():
        newest = max(by_turn)
        value, *more = {value.casefold(): value for value in sorted(by_turn[newest])}.items()
        # With two services, a slot may have two values.
        if not more and is_said(value[0], "\n".join(told[: newest + 1])):
            yield Settled(dialogue, slot, value[1])

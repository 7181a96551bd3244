"""Other talk, which stands between telling and asking: conversations that mention no name and no value of any episode."""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from deltamem.training.facts.episode import Turn
from deltamem.training.facts.vocabulary import Part, Split, names_and_values, small_talk, wording, words_of
from deltamem.training.records import read_records

Conversation = tuple[Turn, ...]
Item = TypeVar("Item")

SMALL_TALK = "small_talk"
CHITCHAT = "chitchat"
MOST_WORDS = 60  # of a message
HELD_OUT_EVERY = 10
QUESTION_AND_ANSWER = (("question", "answer"), ("Question", "AnswerValue"))


def load_fillers(source: str, split: Split = "train") -> tuple[Conversation, ...]:
    """Conversations to fill a history with; every tenth is held out, and small talk has held-out turns of its own.

    Turns with a name or a value of any split are left out, so that facts are told by statements alone, and what is held out
    occurs nowhere in training.

    Args:
        source: "small_talk", built in; "chitchat", of the package `chitchat-dataset`; or what `read_records` reads, of records
            `{"question": ..., "answer": ...}`; or a file as TriviaQA has them,
            `{"Data": [{"Question": ..., "AnswerValue": ...}]}`.
        split: "train", or another for what is held out.

    Raises:
        ValueError: no such fillers, a package that is missing, records of another format, too few.
    """
    return _load(source, wording(split))


@functools.cache
def _load(source: str, part: Part) -> tuple[Conversation, ...]:
    conversations = (_cleaned(conversation) for conversation in _part(source, part))
    usable = tuple(conversation for conversation in conversations if conversation)
    if not usable:
        raise ValueError(
            f"{source} has no usable conversation for {part!r}: every {HELD_OUT_EVERY}th is held out, and turns that mention a "
            "name or a value of an episode are left out; give a larger source"
        )
    return usable


def _part(source: str, part: Part) -> Iterator[Conversation]:
    if source == SMALL_TALK:
        return ((turn,) for turn in small_talk(part))
    return part_of(dict.fromkeys(chitchat() if source == CHITCHAT else _trivia(source)), part)


def part_of(items: Iterable[Item], part: Part) -> Iterator[Item]:
    """The tenth of the items that is held out, or the rest."""
    return (item for number, item in enumerate(items, 1) if (number % HELD_OUT_EVERY == 0) == (part == "held_out"))


def filler_turns(conversations: Sequence[Conversation], rng: random.Random) -> Iterator[Turn]:
    """Turns without end: conversations one after the other in random order, again only when all have been told."""
    told: set[int] = set()
    while True:
        index = rng.randrange(len(conversations))
        if index not in told:
            yield from conversations[index]
            told.add(index)
        if len(told) == len(conversations):
            told.clear()


def _cleaned(conversation: Conversation) -> Conversation:
    cut = ((_cut(user), _cut(assistant)) for user, assistant in conversation)
    return tuple(turn for turn in cut if not words_of(" ".join(turn)) & names_and_values())


def _cut(text: str) -> str:
    return " ".join(text.split()[:MOST_WORDS])


def chitchat() -> Iterator[Conversation]:
    """The conversations of the package `chitchat-dataset`.

    Raises:
        ValueError: it is missing.
    """
    # Read by ourselves: the package leaves its file open, and decodes it as the system's locale would have it.
    try:
        file = importlib.resources.files("chitchat_dataset").joinpath("dataset.json")
    except ModuleNotFoundError as error:
        raise ValueError("fillers='chitchat' needs the package chitchat-dataset; run: pip install 'deltamem[train]'") from error
    for conversation in json.loads(file.read_text(encoding="utf-8")).values():
        yield _in_turns(itertools.chain.from_iterable(conversation["messages"]))


def _in_turns(utterances: Iterable[dict[str, Any]]) -> Conversation:
    """Turns of whoever speaks first and the other: what one says in a row is one message; an unanswered end is left out."""
    said = [utterance for utterance in utterances if utterance["text"].strip()]
    messages = [
        " ".join(utterance["text"] for utterance in row)
        for _, row in itertools.groupby(said, key=lambda utterance: utterance["sender"])
    ]
    return tuple(zip(messages[::2], messages[1::2], strict=False))


def _trivia(source: str) -> Iterator[Conversation]:
    for record in read_records(source):
        question, answer = next((names for names in QUESTION_AND_ANSWER if record[names[0]].is_given), QUESTION_AND_ANSWER[0])
        yield ((record[question].text(), record[answer].text()),)

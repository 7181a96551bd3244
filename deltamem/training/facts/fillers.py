"""Other talk between telling and asking: conversations that mention no name and no value of any episode."""

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
MOST_WORDS = 60  # per message
HELD_OUT_EVERY = 10
QUESTION_AND_ANSWER = (("question", "answer"), ("Question", "AnswerValue"))


def load_fillers(source: str, split: Split = "train") -> tuple[Conversation, ...]:
    """Load conversations to fill a history with; every tenth is held out, and small talk has its own held-out turns.

    Turns with a name or a value of any split are left out, so that only statements tell facts, and held-out words occur
    nowhere in training.

    Args:
        source: "small_talk", built in; "chitchat", from the package `chitchat-dataset`; or a source for `read_records`, with
            records `{"question": ..., "answer": ...}`, or a file in TriviaQA's format, `{"Data": [{"Question": ...,
            "AnswerValue": ...}]}`.
        split: "train"; any other split takes the held-out part.

    Raises:
        ValueError: there are no such fillers or too few, the package is missing, or records are malformed.
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
    """Select every tenth item for "held_out", the others for "train"."""
    return (item for number, item in enumerate(items, 1) if (number % HELD_OUT_EVERY == 0) == (part == "held_out"))


def filler_turns(conversations: Sequence[Conversation], rng: random.Random) -> Iterator[Turn]:
    """Yield turns endlessly: conversations in random order, repeated only once all have been told."""
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
    """Yield the conversations of the package `chitchat-dataset`.

    Raises:
        ValueError: the package is missing.
    """
    # Not read through the package, which leaves its file open and decodes it with the system's locale.
    try:
        file = importlib.resources.files("chitchat_dataset").joinpath("dataset.json")
    except ModuleNotFoundError as error:
        raise ValueError(
            "the chats of 'chitchat' need the package chitchat-dataset; run: pip install 'deltamem[train]'"
        ) from error
    for conversation in json.loads(file.read_text(encoding="utf-8")).values():
        yield _in_turns(itertools.chain.from_iterable(conversation["messages"]))


def _in_turns(utterances: Iterable[dict[str, Any]]) -> Conversation:
    """Pair the first speaker's messages with the other's, joining consecutive ones and dropping an unanswered end."""
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

"""What a training draws from: items that another process makes, each of which is used a few times."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from episodes import READ, WRITTEN, Answered, Item, Maker, Read, Sources, draw_questions
from torch import Tensor
from torch.utils.data import IterableDataset

from deltamem.chat.tokens import render

# How many items of a kind are kept at most and at least, and how often each is used.
POOL, FEWEST, TALK_USES, QUESTION_USES = 160, 24, 16, 4
READS = 8  # of a dialogue
TALK_SHARES = {"chitchat": 3.0, "sgd": 3.0, "qmsum": 2.0}
WORDS_AFTER = 600  # of other talk after facts that were told long ago
OWN_ANSWERS = 0.5  # of unrelated chats; the others are small talk
UNRELATED = 6  # texts that are read together


class Phase(IntEnum):
    """The parts of a new adapter's training, in their order."""

    TALK = 0  # dialogues alone
    FEW_FACTS = 1
    EVERYTHING = 2


@dataclass(frozen=True)
class Histories:
    """The shares of what histories with questions are.

    Args:
        facts: of those with one fact, two, ...
        any_word: of facts whose value is any word.
        updated: of histories with replaced facts.
        long_ago: of histories with other talk after the facts.
        services: of dialogues with a service.
    """

    facts: tuple[float, ...]
    any_word: float
    updated: float = 0.0
    long_ago: float = 0.0
    services: float = 0.0


PHASE_HISTORIES = {
    Phase.FEW_FACTS: Histories((4.0, 3.0, 2.0, 2.0), any_word=0.5),
    Phase.EVERYTHING: Histories((3.0, 2.0, 1.0, 3.0, 0.5, 1.5, 0.5, 1.5), 0.25, updated=0.35, long_ago=0.12, services=0.35),
}


@dataclass(frozen=True)
class Fresh:
    """What a worker made at once.

    Args:
        talking: a dialogue.
        unrelated: texts to leave alone.
        headed: whether these texts have the template's marks.
        asking: histories of facts with questions.
        in_context: questions that have in their context what their history has.
    """

    talking: Item
    unrelated: list[Read]
    headed: bool
    asking: list[Item] = field(default_factory=list)
    in_context: list[Item] = field(default_factory=list)


class Endless(IterableDataset[Fresh]):
    """Makes items without end, in a process of its own.

    Args:
        maker: makes them.
        sources: the data.
        answers: questions, each with the bare backbone's own answer.
        passages: the same, with passages that answer them.
        phase: the `Phase` to make them for, in memory that is shared with this process.
        seed: seeds what is drawn.
    """

    def __init__(
        self,
        maker: Maker,
        sources: Sources,
        answers: Sequence[Answered],
        passages: Sequence[Answered],
        phase: Tensor,
        seed: str,
    ) -> None:
        self.maker, self.answers, self.passages, self.phase, self.seed = maker, answers, passages, phase, seed
        self.talks, self.prose = sources.talks(held_out=False), sources.prose(held_out=False)

    def __iter__(self) -> Iterator[Fresh]:
        torch.set_num_threads(1)
        self.maker.rng.seed(self.seed)
        while True:
            headed = self.maker.rng.random() < 0.5
            unrelated = self.maker.unrelated(self._texts(headed), headed)
            histories = PHASE_HISTORIES.get(Phase(int(self.phase)))
            if histories is None:
                yield Fresh(self._talk(), unrelated, headed)
                continue
            in_context = self.maker.in_context(self.maker.rng.choice(self.passages))
            asking = [self._questions(histories), self._questions(histories)]
            yield Fresh(self._talk(), unrelated, headed, asking, [in_context])

    def _talk(self) -> Item:
        rng = self.maker.rng
        while True:
            (source,) = rng.choices([*TALK_SHARES], [*TALK_SHARES.values()])
            try:
                # In use, the memory never has to know what the user begins to say; it harms other chats there.
                chat, written = rng.choice(self.talks[source]), rng.choice(WRITTEN)
                return self.maker.talk(chat, written, READ, READS, first_word=False)
            except ValueError:  # too short
                continue

    def _questions(self, histories: Histories) -> Item:
        rng = self.maker.rng
        while rng.random() < histories.services:
            with suppress(ValueError):  # nothing that was agreed on was said so early
                return self.maker.slots(rng.choice(self.talks["sgd"]), rng.choice(WRITTEN), 3)
        (facts,) = rng.choices(range(1, len(histories.facts) + 1), histories.facts)
        updates = 0.5 if rng.random() < histories.updated else 0.0
        words_after = WORDS_AFTER if rng.random() < histories.long_ago else 0
        asked = draw_questions(rng, facts, "train", self.maker.words, histories.any_word, updates, words_after)
        return self.maker.questions(asked, "train", 3)

    def _texts(self, headed: bool) -> list[str]:
        """Questions with the backbone's answers and small talk, or passages and talk without the template's marks."""
        rng, small_talk = self.maker.rng, self.talks["chitchat"]
        texts = []
        for _ in range(UNRELATED):
            talk = rng.choice(small_talk)["messages"]
            if headed:
                own = rng.random() < OWN_ANSWERS
                texts.append(rng.choice(self.answers).text if own else render(self.maker.backbone.tokenizer, talk[:2]))
            elif rng.random() < 0.4:
                texts.append(_piece(rng, " ".join(message["content"] for message in talk)))
            else:
                texts.append(_piece(rng, rng.choice(self.prose)))
        return texts


@dataclass
class Pools:
    """The items to draw from.

    Args:
        fresh: new ones, without end.
        phase: the `Phase` that they are made for.
    """

    fresh: Iterator[Fresh]
    phase: Tensor
    talking: list[Item] = field(default_factory=list)
    asking: list[Item] = field(default_factory=list)
    unrelated: list[tuple[bool, list[Read]]] = field(default_factory=list)
    in_context: list[Item] = field(default_factory=list)

    def refill(self) -> None:
        """Drop what is used up and what is oldest, and take new items."""
        while len(self.talking) < FEWEST or (len(self.asking) < FEWEST and self.phase != Phase.TALK):
            self._take()
        self._take()
        self.talking = [item for item in self.talking if item.uses < TALK_USES][-POOL:]
        self.asking = [item for item in self.asking if item.uses < QUESTION_USES][-POOL:]
        self.unrelated, self.in_context = self.unrelated[-POOL // 2 :], self.in_context[-POOL // 2 :]

    def _take(self) -> None:
        new = next(self.fresh)
        self.talking.append(new.talking)
        self.asking += new.asking
        self.unrelated.append((new.headed, new.unrelated))
        self.in_context += new.in_context


def _piece(rng: random.Random, text: str) -> str:
    """Some words of a text."""
    words = text.split(" ")
    start = rng.randrange(max(len(words) - 40, 1))
    return " ".join(words[start : start + 60])

"""What a training draws from: items that another process makes, each of which is used a few times."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from episodes import READ, WRITTEN, Answered, Item, Maker, Read, Sources, draw_questions
from torch import Tensor
from torch.utils.data import IterableDataset

from deltamem.chat.tokens import render

# How many items of a kind are kept at most and at least, and how often each is used.
POOL, FEWEST, TALK_USES, QUESTION_USES = 160, 24, 16, 4
READS = 8  # of a dialogue
TALK_SHARES = {"chitchat": 3.0, "sgd": 3.0, "qmsum": 2.0}
FACT_SHARES = (3.0, 2.0, 1.0, 3.0, 0.5, 1.5, 0.5, 1.5)  # of histories with one fact, two, ...
ANY_WORD = 0.25
UPDATED, LONG_AGO = 0.35, 0.12  # of histories: those with replaced facts, and those with other talk of this many words after
WORDS_AFTER = 600
SLOTS = 0.35  # of the histories with questions: dialogues with a service
OWN_ANSWERS = 0.5  # of unrelated chats; the others are small talk
UNRELATED = 6  # texts that are read together


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
        talk_alone: whether to make no questions, in memory that is shared with this process.
        seed: seeds what is drawn.
    """

    def __init__(
        self,
        maker: Maker,
        sources: Sources,
        answers: Sequence[Answered],
        passages: Sequence[Answered],
        talk_alone: Tensor,
        seed: str,
    ) -> None:
        self.maker, self.answers, self.passages, self.talk_alone, self.seed = maker, answers, passages, talk_alone, seed
        self.talks, self.prose = sources.talks(held_out=False), sources.prose(held_out=False)

    def __iter__(self) -> Iterator[Fresh]:
        torch.set_num_threads(1)
        self.maker.rng.seed(self.seed)
        while True:
            headed = self.maker.rng.random() < 0.5
            unrelated = self.maker.unrelated(self._texts(headed), headed)
            if self.talk_alone:
                yield Fresh(self._talk(), unrelated, headed)
                continue
            in_context = self.maker.in_context(self.maker.rng.choice(self.passages))
            yield Fresh(self._talk(), unrelated, headed, [self._questions(), self._questions()], [in_context])

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

    def _questions(self) -> Item:
        rng = self.maker.rng
        while rng.random() < SLOTS:
            with suppress(ValueError):  # nothing that was agreed on was said so early
                return self.maker.slots(rng.choice(self.talks["sgd"]), rng.choice(WRITTEN), 3)
        (facts,) = rng.choices(range(1, len(FACT_SHARES) + 1), FACT_SHARES)
        updates = 0.5 if rng.random() < UPDATED else 0.0
        words_after = WORDS_AFTER if rng.random() < LONG_AGO else 0
        asked = draw_questions(rng, facts, "train", self.maker.words, ANY_WORD, updates, words_after)
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
        talk_alone: whether there need be no questions.
    """

    fresh: Iterator[Fresh]
    talk_alone: Tensor
    talking: list[Item] = field(default_factory=list)
    asking: list[Item] = field(default_factory=list)
    unrelated: list[tuple[bool, list[Read]]] = field(default_factory=list)
    in_context: list[Item] = field(default_factory=list)

    def refill(self) -> None:
        """Drop what is used up and what is oldest, and take new items."""
        while len(self.talking) < FEWEST or (len(self.asking) < FEWEST and not self.talk_alone):
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

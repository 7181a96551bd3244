"""What is trained on and measured: histories with what is read after them, as cached hidden states.

Shapes: L upper layers, T tokens, W width of the hidden states.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from layers import FrozenBackbone, Words
from torch import Tensor

from deltamem.chat.tokens import render
from deltamem.training.chats import Chat
from deltamem.training.data import training_words
from deltamem.training.episodes import EpisodeEncoder
from deltamem.training.facts import FactEpisode, FactEpisodeConfig, Split, fact_questions
from deltamem.training.facts.answers import to_second_person
from deltamem.training.facts.vocabulary import USER, templates
from deltamem.training.scripts import IGNORED
from deltamem.training.texts import chitchat_talk

HELD_OUT_EVERY = 10  # every tenth meeting and passage is for measuring
WRITTEN, READ = (96, 160, 256, 352), 48  # tokens of a history and of what is read after it
UNRELATED, UNRELATED_CHAT = 40, 56  # tokens of an unrelated text
VALUES = 0.25  # of the answers: the value alone
ANSWER, BATCH = 28, 32  # tokens of the backbone's own answers, and how many are generated at once


@dataclass(frozen=True)
class Read:
    """A text that is read after a history, without the template's head.

    Args:
        tokens: the text, `[T]`.
        below: the hidden states that enter the first layer with a memory, `[T, W]`.
        labels: the next token at each position if it is asked for, else `IGNORED`, `[T]`.
        written: how many tokens of the history come before it.
        bare: what the backbone says without the history.
        informed: what it says with the history in its context; None if that is not followed.
    """

    tokens: Tensor
    below: Tensor
    labels: Tensor
    written: int
    bare: Words
    informed: Words | None = None

    @property
    def asked(self) -> Tensor:
        """The positions whose next token is asked for."""
        return (self.labels != IGNORED).nonzero().squeeze(1)


@dataclass(eq=False)
class Item:
    """A history and what is read after it.

    Args:
        attended: what the attentions with a memory read, `[L, T, W]`.
        tokens: the history's tokens, `[T]`.
        reads: the texts read after it.
        uses: how often it was trained on.
    """

    attended: Tensor
    tokens: Tensor
    reads: list[Read]
    uses: int = field(default=0)

    def before(self, read: Read) -> Tensor:
        """The history up to where a text continues it, `[L, written, W]`."""
        return self.attended[:, : read.written]


@dataclass
class Maker:
    """Makes items.

    Args:
        backbone: the frozen backbone.
        rng: draws everything.
    """

    backbone: FrozenBackbone
    rng: random.Random

    def __post_init__(self) -> None:
        self.words = training_words(self.backbone.tokenizer)

    def talk(self, chat: Chat, written: int, read: int, parts: int) -> Item:
        """A dialogue that is continued from some of its messages.

        Args:
            chat: the dialogue.
            written: maximum tokens of the history.
            read: maximum tokens of what is read.
            parts: how many messages to continue from.

        Raises:
            ValueError: it is too short.
        """
        encode = EpisodeEncoder(self.backbone.tokenizer, max_write_tokens=written, talk_tokens=read, whole=True)
        episode = encode({**chat, "seed": self.rng.random(), "reads": [{"view": "memory"}] * parts})
        reads = [*{part.written: part for part in episode.reads}.values()]
        places = torch.cat([torch.arange(part.written, part.written + part.follows) for part in reads]).unique()
        whole = self.backbone([episode.chat.ids], places)
        head = len(self.backbone.head)
        alone = self.backbone([part.ids for part in reads], torch.arange(head, max(len(part.ids) for part in reads)))
        made = []
        for row, part in enumerate(reads):
            at = torch.searchsorted(places, torch.arange(part.written, part.written + part.follows))
            end = part.follows
            made.append(
                Read(
                    part.ids[head:],
                    alone.below[row, head : head + end].clone(),
                    _next(part.ids)[head:],
                    part.written,
                    Words.likeliest(alone.logits[row, :end]),
                    Words.likeliest(whole.logits[0, at]),
                )
            )
        most = max(read.written for read in made)
        return Item(whole.attended[:, 0, :most].clone(), episode.chat.ids[:most], made)

    def questions(self, asked: Sequence[FactEpisode], split: Split, most: int, value_only: bool = False) -> Item:
        """A history of facts with questions, most of which are answered by a sentence.

        Args:
            asked: episodes of one history.
            split: whose sentences to answer with.
            most: maximum number of questions.
            value_only: ask for the value within a sentence only; otherwise for what `_answer` says.
        """
        told = self.backbone.ids(render(self.backbone.tokenizer, asked[0].history))
        whole = self.backbone([told], torch.arange(1))
        drawn = [self._answered(episode, split, value_only) for episode in self.rng.sample(asked, min(most, len(asked)))]
        head = len(self.backbone.head)
        alone = self.backbone([ids for ids, _ in drawn], torch.arange(head, max(len(ids) for ids, _ in drawn)))
        reads = [
            Read(
                ids[head:],
                alone.below[row, head : len(ids)].clone(),
                _next(labels)[head:],
                len(told),
                Words.likeliest(alone.logits[row, : len(ids) - head]),
            )
            for row, (ids, labels) in enumerate(drawn)
        ]
        return Item(whole.attended[:, 0].clone(), told, reads)

    def unrelated(self, texts: Sequence[str], headed: bool) -> list[Read]:
        """Texts that have nothing to do with any history; those that are chats have the template's head."""
        head, most = (len(self.backbone.head), UNRELATED_CHAT) if headed else (0, UNRELATED)
        rows = [self.backbone.ids(text)[: head + most] for text in texts]
        seen = self.backbone(rows, torch.arange(head, max(map(len, rows))))
        return [
            Read(
                ids[head:],
                seen.below[row, head : len(ids)].clone(),
                _next(ids)[head:],
                0,
                Words.likeliest(seen.logits[row, : len(ids) - head]),
            )
            for row, ids in enumerate(rows)
        ]

    def _answered(self, episode: FactEpisode, split: Split, value_only: bool) -> tuple[Tensor, Tensor]:
        """Tokens and labels of a question with its answer."""
        tokenizer = self.backbone.tokenizer
        answer, whole = self._answer(episode, split, value_only)
        prompt = render(tokenizer, [episode.question], add_generation_prompt=True)
        chat = render(tokenizer, [episode.question, {"role": "assistant", "content": answer}])
        answer = chat[: chat.rindex(answer) + len(answer)].removeprefix(prompt)  # with a space if the template has one
        encoded = tokenizer(answer + self.backbone.end, add_special_tokens=False, return_offsets_mapping=True)
        start = answer.lower().rindex(episode.answer.lower())
        end = start + len(episode.answer) if value_only else len(answer) + len(self.backbone.end)
        labels = [
            token if whole or (last > start and first < end) else IGNORED
            for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
        asked = self.backbone.ids(prompt)
        ids = torch.cat([asked, torch.tensor(encoded["input_ids"])])
        return ids, torch.cat([torch.full_like(asked, IGNORED), torch.tensor(labels)])

    def _answer(self, episode: FactEpisode, split: Split, value_only: bool) -> tuple[str, bool]:
        """An answer, and whether to ask for all of it: else for the value and what follows."""
        fact, drawn = episode.asked, self.rng.random()
        told = templates(fact.attribute, "statements", split, fact.name)
        if not value_only and drawn >= 1 - VALUES:
            return fact.value, True
        whole = not value_only and drawn >= 0.4
        template = told[0] if whole else self.rng.choice(told)
        if fact.name == USER:
            template = to_second_person(template)
        return template.format(name=fact.name, value=fact.value), whole


def _next(ids: Tensor) -> Tensor:
    """The next token of each, `[T]`."""
    return torch.cat([ids[1:], torch.full_like(ids[:1], IGNORED)])


@dataclass(frozen=True)
class Sources:
    """The data: chitchat from its package, and files of Schema-Guided Dialogue, QMSum, Natural Questions and trivia questions.

    Args:
        folder: has the files.
    """

    folder: Path

    def talks(self, held_out: bool) -> dict[str, list[Chat]]:
        """Dialogues by source."""
        sgd = "sgd_dev.jsonl.gz" if held_out else "sgd_train.jsonl.gz"
        return {
            "chitchat": chitchat_talk("held_out" if held_out else "train"),
            "sgd": [{"messages": record["messages"], "talk": True} for record in self._records(sgd)],
            "qmsum": _part([_meeting(record["turns"]) for record in self._records("qmsum_train.jsonl.gz")], held_out),
        }

    def prose(self, held_out: bool) -> list[str]:
        """Passages of Wikipedia."""
        passages = [
            context["text"]
            for record in self._records("nq-open-oracle.jsonl.gz")
            for context in record["ctxs"]
            if context.get("isgold") and len(context["text"]) > 200
        ]
        return _part(passages, held_out)

    def questions(self, rng: random.Random, count: int) -> list[str]:
        """Questions about the world, and openings of small talk."""
        with gzip.open(self.folder / "trivia.json.gz", "rt") as file:
            trivia = [record["Question"] for record in json.load(file)["Data"]]
        asked = [_sentence(record["question"]) for record in self._records("nq-open-oracle.jsonl.gz")]
        openings = [chat["messages"][0]["content"] for chat in chitchat_talk("train")]
        kinds = trivia, _part(asked, held_out=False), openings
        return [rng.choice(rng.choice(kinds)) for _ in range(count)]

    def _records(self, name: str) -> Iterator[Any]:
        with gzip.open(self.folder / name, "rt") as file:
            yield from map(json.loads, file)


def _part(everything: list[Any], held_out: bool) -> list[Any]:
    return [one for place, one in enumerate(everything) if (place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out]


def _sentence(question: str) -> str:
    return f"{question[0].upper()}{question[1:]}?"


def _meeting(turns: Sequence[tuple[str, str]]) -> Chat:
    """A meeting as a chat: the speakers take turns as user and assistant, and are named."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": f"{who}: {said}"} for place, (who, said) in enumerate(turns)]
    return {"messages": messages, "talk": True}


@torch.no_grad()
def own_answers(backbone: FrozenBackbone, questions: Sequence[str]) -> list[str]:
    """Chats of a question and what the bare backbone answers, at most `ANSWER` tokens of it."""
    tokenizer, chats = backbone.tokenizer, []
    (end,) = backbone.ids(backbone.end).tolist()
    for first in range(0, len(questions), BATCH):
        asked = [[{"role": "user", "content": question}] for question in questions[first : first + BATCH]]
        texts = [render(tokenizer, chat, add_generation_prompt=True) for chat in asked]
        batch = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
        output = backbone.model.generate(**batch, max_new_tokens=ANSWER, do_sample=False, eos_token_id=end)
        for text, ids in zip(texts, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            length = ids.index(end) + 1 if end in ids else len(ids)
            chats.append(text + tokenizer.decode(ids[:length]))
    return chats


def draw_questions(
    rng: random.Random,
    facts: int,
    split: Split,
    words: Sequence[str],
    any_word: float,
    updates: float = 0.0,
    words_after: int = 0,
) -> list[FactEpisode]:
    """Draw a history that tells so many facts, with a question about each: `FactEpisodeConfig` has the other options."""
    config = FactEpisodeConfig(
        min_facts=facts,
        max_facts=facts,
        any_word=any_word,
        updates=updates,
        first_person=0.35,
        same_attribute=0.2,
        separate_turns=0.5,
        fillers="chitchat",
        max_fillers=1,
        filler_words_after=words_after,
    )
    return fact_questions(rng, config, split, words)

"""What is trained on and measured: histories with what is read after them, as cached hidden states.

Shapes: L upper layers, T tokens, W width of the hidden states.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from layers import FrozenBackbone, Words
from torch import Tensor
from wordings import worded

from deltamem.chat.tokens import Message, render
from deltamem.evaluation.answer_scores import is_said
from deltamem.training.chats import Chat
from deltamem.training.data import training_words
from deltamem.training.episodes import EpisodeEncoder
from deltamem.training.facts import FactEpisode, FactEpisodeConfig, Split, fact_questions
from deltamem.training.facts.answers import to_second_person
from deltamem.training.facts.vocabulary import USER, templates
from deltamem.training.scripts import IGNORED
from deltamem.training.texts import chitchat_talk

HELD_OUT_EVERY = 10  # every tenth meeting and passage is for measuring
WRITTEN, READ = (96, 192, 320, 512), 48  # tokens of a history and of what is read after it
UNRELATED, UNRELATED_CHAT = 40, 48  # tokens of an unrelated text
VALUES, SENTENCES = 0.25, 0.35  # of the answers about facts: the value alone, sentences; in others, from the value on
SLOT_QUESTIONS = (  # not in the words of `deltamem eval dialogue`
    "What was the {slot}?",
    "Which {slot} did we settle on?",
    "Can you tell me the {slot} again?",
    "What did we say about the {slot}?",
    "Which {slot} did I ask for?",
    "I forgot the {slot}. What was it?",
    "Do you remember the {slot}?",
    "Tell me the {slot} once more.",
)
VALUE_ALONE = (" Just the answer, please.", " Tell me only that.")
Asked = Literal["all", "rest", "value"]
PASSAGE_QUESTIONS = (
    "{passage}\n\n{question}",
    "{question}\n\n{passage}",
    "Read this text, and answer with a few words.\n\n{passage}\n\n{question}",
    "Here is what I found: {passage}\n{question} Answer briefly.",
)
PASSAGE_WORDS = 80
ANSWER, BATCH = 28, 32  # tokens of the backbone's own answers, and how many are generated at once


@dataclass(frozen=True)
class Read:
    """A text that is read after a history, without the template's head.

    Args:
        tokens: the text, `[T]`.
        below: the hidden states that enter the first layer with a memory, `[T, W]`.
        labels: the next token at each position if it is asked for, else `IGNORED`, `[T]`.
        written: how many tokens of the history come before it.
        expected: what to say: what the backbone says with the history in its context, or of an unrelated text; None where only
            `labels` count.
    """

    tokens: Tensor
    below: Tensor
    labels: Tensor
    written: int
    expected: Words | None = None

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
        lasting: whether its questions still have the same answers after other dialogues.
    """

    attended: Tensor
    tokens: Tensor
    reads: list[Read]
    uses: int = field(default=0)
    lasting: bool = False

    def before(self, read: Read) -> Tensor:
        """The history up to where a text continues it, `[L, written, W]`."""
        return self.attended[:, : read.written]

    @property
    def answers(self) -> Tensor:
        """Which of the history's tokens its reads ask for, `[T]`."""
        return torch.isin(self.tokens, torch.cat([read.labels[read.asked] for read in self.reads]))


@dataclass(frozen=True)
class Question:
    """A question about a history.

    Args:
        text: the question.
        answer: its answer.
        value: what of the answer the history told.
        asked: what to ask for: the whole answer with its end, the value with what comes after it, or the value.
    """

    text: str
    answer: str
    value: str
    asked: Asked


class Answered(NamedTuple):
    """A question as a rendered chat, without and with the bare backbone's answer."""

    prompt: str
    text: str


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

    def talk(self, chat: Chat, written: int, read: int, parts: int, first_word: bool = True) -> Item:
        """A dialogue that is continued from some of its messages; what the messages say is asked for.

        Args:
            chat: the dialogue.
            written: maximum tokens of the history.
            read: maximum tokens of what is read.
            parts: how many messages to continue from.
            first_word: ask for the first word of a text that starts with what the user says as well.

        Raises:
            ValueError: it is too short.
        """
        encode = EpisodeEncoder(self.backbone.tokenizer, max_write_tokens=written, talk_tokens=read, whole=True)
        episode = encode({**chat, "seed": self.rng.random(), "reads": [{"view": "memory"}] * parts})
        reads = [*{part.written: part for part in episode.reads}.values()]
        places = torch.cat([torch.arange(part.written, part.written + part.follows) for part in reads]).unique()
        whole = self.backbone([episode.chat.ids], places)
        texts = [part.ids[len(self.backbone.head) :] for part in reads]
        made = []
        for part, text, below in zip(reads, texts, self.backbone.below(texts), strict=True):
            at = torch.searchsorted(places, torch.arange(part.written, part.written + part.follows))
            expected = Words.likeliest(whole.logits[0, at])
            labels = self._labels(text, first_word or not self.backbone.starts_with_user(text))
            made.append(Read(text, below[: len(text)].clone(), labels, part.written, expected))
        most = max(read.written for read in made)
        return Item(whole.attended[:, 0, :most].clone(), episode.chat.ids[:most], made)

    def questions(self, asked: Sequence[FactEpisode], split: Split, most: int, value_only: bool = False) -> Item:
        """A history of facts with questions, most of which are answered by a sentence.

        Args:
            asked: episodes of one history.
            split: whose sentences to answer with.
            most: maximum number of questions.
            value_only: ask for the value within a sentence only.
        """
        drawn = self.rng.sample(asked, min(most, len(asked)))
        item = self._item(asked[0].history, [_fact_question(self.rng, episode, split, value_only) for episode in drawn])
        item.lasting = True
        return item

    def slots(self, record: Mapping[str, Any], written: int, most: int, value_only: bool = False) -> Item:
        """A dialogue with a service, with questions about what was agreed on.

        Args:
            record: the dialogue, of Schema-Guided Dialogue.
            written: maximum tokens of the history.
            most: maximum number of questions.
            value_only: ask for the value within a sentence only.

        Raises:
            ValueError: nothing that was agreed on was said so early.
        """
        history: list[Message] = []
        for message in record["messages"]:
            if len(self.backbone.ids(render(self.backbone.tokenizer, [*history, message]))) > written:
                break
            history.append(message)
        settled = _settled(record["facts"], history)
        if not settled:
            raise ValueError("nothing that was agreed on was said so early")
        drawn = self.rng.sample(settled, min(most, len(settled)))
        return self._item(history, [_slot_question(self.rng, slot, value, value_only) for slot, value in drawn])

    def _item(self, history: Sequence[Message], questions: Sequence[Question]) -> Item:
        """A history with questions."""
        told = self.backbone.ids(render(self.backbone.tokenizer, history))
        whole = self.backbone([told], torch.arange(1))
        drawn = [self._answered(question) for question in questions]
        belows = self.backbone.below([ids for ids, _ in drawn])
        reads = [
            Read(ids, below[: len(ids)].clone(), next_tokens(labels), len(told))
            for (ids, labels), below in zip(drawn, belows, strict=True)
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
                next_tokens(ids)[head:],
                0,
                Words.likeliest(seen.logits[row, : len(ids) - head]),
            )
            for row, ids in enumerate(rows)
        ]

    def in_context(self, answered: Answered) -> Item:
        """A question with a text that answers it, all of which the history has as well."""
        ids, head, written = self.backbone.ids(answered.text), len(self.backbone.head), len(self.backbone.ids(answered.prompt))
        seen = self.backbone([ids], torch.arange(head, len(ids)))
        labels = next_tokens(ids)[head:]
        labels[: written - head - 1] = IGNORED
        read = Read(ids[head:], seen.below[0, head:].clone(), labels, written, Words.likeliest(seen.logits[0]))
        return Item(seen.attended[:, 0, :written].clone(), ids[:written], [read])

    def _labels(self, text: Tensor, first_word: bool) -> Tensor:
        said = self.backbone.said(text)
        if not first_word:
            said[said.nonzero()[0]] = False
        return next_tokens(torch.where(said, text, IGNORED))

    def _answered(self, question: Question) -> tuple[Tensor, Tensor]:
        """Tokens and labels of a question with its answer, without the template's head."""
        tokenizer = self.backbone.tokenizer
        asked: Message = {"role": "user", "content": question.text}
        prompt = render(tokenizer, [asked], add_generation_prompt=True)
        chat = render(tokenizer, [asked, {"role": "assistant", "content": question.answer}])
        # With a space before it if the template has one.
        answer = chat[: chat.rindex(question.answer) + len(question.answer)].removeprefix(prompt)
        encoded = tokenizer(answer + self.backbone.end, add_special_tokens=False, return_offsets_mapping=True)
        start = answer.lower().rindex(question.value.lower())
        end = len(answer) + len(self.backbone.end) if question.asked == "rest" else start + len(question.value)
        labels = [
            token if question.asked == "all" or (last > start and first < end) else IGNORED
            for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
        before = self.backbone.ids(prompt)[len(self.backbone.head) :]
        ids = torch.cat([before, torch.tensor(encoded["input_ids"])])
        return ids, torch.cat([torch.full_like(before, IGNORED), torch.tensor(labels)])


def _fact_question(rng: random.Random, episode: FactEpisode, split: Split, value_only: bool) -> Question:
    fact, text = episode.asked, worded(rng, episode) if split == "train" else episode.question["content"]
    whole, asked = _asked(rng, value_only)
    if not whole:
        return Question(text + rng.choice(VALUE_ALONE), fact.value, fact.value, asked)
    told = templates(fact.attribute, "statements", split, fact.name)
    template = told[0] if asked == "all" else rng.choice(told)
    if fact.name == USER:
        template = to_second_person(template)
    return Question(text, template.format(name=fact.name, value=fact.value), fact.value, asked)


def _asked(rng: random.Random, value_only: bool) -> tuple[bool, Asked]:
    """Whether the answer to a question about a fact is a sentence, and what of it to ask for."""
    if value_only:
        return True, "value"
    drawn = rng.random()
    return drawn >= VALUES, "all" if drawn < VALUES + SENTENCES else "rest"


def _slot_question(rng: random.Random, slot: str, value: str, value_only: bool) -> Question:
    name, whole = slot.replace("_", " "), value_only or rng.random() < 0.5
    text = rng.choice(SLOT_QUESTIONS).format(slot=name) + ("" if whole else rng.choice(VALUE_ALONE))
    return Question(text, f"The {name} was {value}." if whole else value, value, "value" if value_only else "all")


def _settled(facts: Sequence[Mapping[str, Any]], history: Sequence[Message]) -> list[tuple[str, str]]:
    """The newest value of each slot, if it was said."""
    said = "\n".join(message["content"] for message in history).casefold()
    newest = {fact["slot"]: fact["value"] for fact in facts}
    return [(slot, value) for slot, value in newest.items() if is_said(value.casefold(), said)]


def next_tokens(ids: Tensor) -> Tensor:
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
            "sgd": [{**record, "talk": True} for record in self._records(sgd)],
            "qmsum": _part([_meeting(record["turns"]) for record in self._records("qmsum_train.jsonl.gz")], held_out),
        }

    def prose(self, held_out: bool) -> list[str]:
        """Passages of Wikipedia."""
        return _part([text for _, text in self._answering() if len(text) > 200], held_out)

    def questions(self, rng: random.Random, count: int, words: Sequence[str]) -> list[str]:
        """Questions about the world and about people of whom nothing was told, and openings of small talk."""
        with gzip.open(self.folder / "trivia.json.gz", "rt") as file:
            trivia = [record["Question"] for record in json.load(file)["Data"]]
        asked = [_sentence(record["question"]) for record in self._records("nq-open-oracle.jsonl.gz")]
        openings = [chat["messages"][0]["content"] for chat in chitchat_talk("train")]
        untold = [worded(rng, draw_questions(rng, 1, "train", words, 0.0)[0]) for _ in range(count)]
        kinds = trivia, _part(asked, held_out=False), openings, untold
        return [rng.choice(rng.choice(kinds)) for _ in range(count)]

    def passages(self, rng: random.Random, count: int) -> list[str]:
        """Questions about the world, each with a passage that answers it."""
        told = [(_sentence(asked), " ".join(text.split(" ")[:PASSAGE_WORDS])) for asked, text in self._answering()]
        drawn = rng.sample(_part(told, held_out=False), count)
        return [rng.choice(PASSAGE_QUESTIONS).format(question=question, passage=passage) for question, passage in drawn]

    def _answering(self) -> Iterator[tuple[str, str]]:
        """Questions of Natural Questions with the passage that answers each."""
        for record in self._records("nq-open-oracle.jsonl.gz"):
            yield from ((record["question"], context["text"]) for context in record["ctxs"] if context.get("isgold"))

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
def own_answers(backbone: FrozenBackbone, questions: Sequence[str]) -> list[Answered]:
    """Questions with what the bare backbone answers, at most `ANSWER` tokens of it."""
    tokenizer, chats = backbone.tokenizer, []
    (end,) = backbone.ids(backbone.end).tolist()
    for first in range(0, len(questions), BATCH):
        asked = [[{"role": "user", "content": question}] for question in questions[first : first + BATCH]]
        texts = [render(tokenizer, chat, add_generation_prompt=True) for chat in asked]
        batch = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
        output = backbone.model.generate(**batch, max_new_tokens=ANSWER, do_sample=False, eos_token_id=end)
        for text, ids in zip(texts, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            length = ids.index(end) + 1 if end in ids else len(ids)
            chats.append(Answered(text, text + tokenizer.decode(ids[:length])))
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
        first_person=0.5 if split == "train" else 0.35,
        same_attribute=0.2,
        separate_turns=0.5,
        fillers="chitchat",
        max_fillers=1,
        filler_words_after=words_after,
    )
    return fact_questions(rng, config, split, words)

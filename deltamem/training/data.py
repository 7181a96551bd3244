"""What `deltamem train` trains on: chats, question-answering sets, or generated facts."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset, Subset

from deltamem.chat_tokens import render
from deltamem.training.documents import DocumentDataset
from deltamem.training.episodes import read_episodes
from deltamem.training.facts import FactEpisodeConfig, Split, fact_questions, held_out_values, load_fillers
from deltamem.training.facts.episode import as_messages
from deltamem.training.facts.fillers import SMALL_TALK
from deltamem.training.records import read_records
from deltamem.training.sources import SOURCES, read_documents
from deltamem.training.views import VIEWS, InViews, in_views_and_controls, view_weights

FACTS = "facts"
UNRELATED_TURNS = 2
# How byte-level and SentencePiece vocabularies write a word behind a space.
WORD = re.compile("[Ġ▁](?P<letters>[A-Za-z][a-z]{2,})")


@dataclass
class DataArguments:
    """What is trained on."""

    data: str = field(
        default=FACTS,
        metadata={
            "help": 'Chats {"messages": [...]}: a file of JSON lines, a folder, or a Hub name. FORMAT:SOURCE for question '
            f'answering, where FORMAT is one of {", ".join(SOURCES)}. Or "facts": generated.'
        },
    )
    data_split: str = field(default="train", metadata={"help": "Of a data set on the Hub."})
    data_config: str | None = field(default=None, metadata={"help": "Of a data set on the Hub, where it has several."})
    system: str | None = field(default=None, metadata={"help": "System prompt put before every chat that has none."})
    questions: int = field(default=1, metadata={"help": "Questions asked after each history, at most; chats have their own."})
    answer_only: bool = field(default=False, metadata={"help": "Train on the answer without the header of its turn."})
    max_write_tokens: int = field(default=8192, metadata={"help": "Longer histories lose their beginning."})
    max_read_tokens: int = field(default=512, metadata={"help": "Longer questions and answers are refused."})
    views: list[str] = field(
        default_factory=lambda: ["memory=1"],
        metadata={"help": f"Ways to use the memory and how often each is trained, VIEW=WEIGHT: {', '.join(VIEWS)}."},
    )
    unrelated: str = field(
        default=SMALL_TALK,
        metadata={"help": 'What the view "unrelated" asks: small_talk, chitchat, or questions and answers as --fillers takes.'},
    )
    eval_data: str | None = field(
        default=None,
        metadata={"help": "Evaluated on at --eval_strategy steps, as --data; for facts, held-out facts if not given."},
    )
    eval_episodes: int = field(default=64, metadata={"help": "How many generated facts, or chats of --eval_data, at most."})


class FactDataset(Dataset[dict[str, Any]]):
    """Generated fact episodes as chats, whose questions are of the kinds that the history holds, each about something else.

    Episode i depends on the seed and i alone.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        config: FactEpisodeConfig,
        questions: int,
        words: Sequence[str] = (),
        split: Split = "train",
    ) -> None:
        self.count, self.seed, self.config, self.questions, self.words = count, seed, config, questions, words
        self.split: Split = split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}-{index}")
        asked = fact_questions(rng, self.config, self.split, self.words)
        asked = rng.sample(asked, min(self.questions, len(asked)))
        turns = [message for episode in asked for message in episode.messages[-2:]]
        return {"messages": asked[0].history + turns, "read_turns": len(asked)}


class WithSystemPrompt(Dataset[dict[str, Any]]):
    """Chats with a system prompt put before those that have none."""

    def __init__(self, chats: Any, system: str) -> None:
        self.chats, self.system = chats, system

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chat = self.chats[index]
        if chat["messages"][0]["role"] == "system":
            return dict(chat)
        return {**chat, "messages": [{"role": "system", "content": self.system}, *chat["messages"]]}


def training_chats(options: DataArguments, facts: FactEpisodeConfig, episodes: int, seed: int, tokenizer: Any) -> Any:
    """The chats to train on, each in a view.

    Args:
        options: the data.
        facts: what generated facts look like.
        episodes: how many of them are generated.
        seed: of whatever is drawn.
        tokenizer: its whole words are what `facts.any_word` draws from, and its chat template has to take the chats.

    Raises:
        ValueError: data that is not there, or of another format; unknown views; no number of facts; chats that the template
            refuses.
    """
    if options.data == FACTS and episodes < 1:
        raise ValueError("as many facts are generated as the steps take, and none end an epoch; give --max_steps, at least 1")
    weights = view_weights(options.views)
    words = training_words(tokenizer) if facts.any_word else ()
    generated = FactDataset(episodes, seed, facts, options.questions, words)
    return InViews(_chats(options, options.data, generated, seed, tokenizer), weights, seed, _unrelated(options, "train"))


def eval_chats(options: DataArguments, facts: FactEpisodeConfig, seed: int, tokenizer: Any) -> dict[str, Any]:
    """The chats to evaluate on while training, once in every view that is trained and once for every control, by name.

    Raises:
        ValueError: data that is not there, or of another format; chats without `eval_data`, or that the template of the
            tokenizer refuses.
    """
    views = [*view_weights(options.views)]
    source = options.eval_data or options.data
    if source != FACTS and options.eval_data is None:
        raise ValueError("to evaluate while training, give chats that are not trained on: --eval_data")
    facts = dataclasses.replace(facts, any_word=0.0)  # held-out words are the attributes' own
    held_out = FactDataset(options.eval_episodes, seed, facts, options.questions, split="held_out")
    chats = _chats(options, source, held_out, seed, tokenizer)
    chats = Subset(chats, range(min(options.eval_episodes, len(chats))))
    return in_views_and_controls(chats, views, _unrelated(options, "held_out"), seed)


def _chats(options: DataArguments, data: str, generated: FactDataset, seed: int, tokenizer: Any) -> Any:
    chats = generated if data == FACTS else _read_chats(options, data, seed)
    if options.system is not None:
        chats = WithSystemPrompt(chats, options.system)
    check_template(tokenizer, chats, range(1 if data == FACTS else len(chats)))
    return chats


def check_template(tokenizer: Any, chats: Any, places: Iterable[int]) -> None:
    """Make sure that a tokenizer's template takes chats: one of each order of roles, which is what templates refuse.

    Raises:
        ValueError: it does not; its own words follow.
    """
    seen = set()
    for messages in (chats[place]["messages"] for place in places):
        roles = tuple(message["role"] for message in messages)
        if roles not in seen:
            seen.add(roles)
            render(tokenizer, messages)


def _read_chats(options: DataArguments, data: str, seed: int) -> Any:
    kind, _, source = data.partition(":")
    if kind in SOURCES and source:
        documents = read_documents(kind, read_records(source, options.data_split, options.data_config))
        return DocumentDataset(documents, options.questions, seed)
    return read_episodes(read_records(data, options.data_split, options.data_config))


def _unrelated(options: DataArguments, split: Split) -> list[list[dict[str, str]]]:
    """Chats of a turn or two for the view that needs them."""
    if all(VIEWS[view].target != "backbone" for view in view_weights(options.views)):
        return []
    return [as_messages(conversation[:UNRELATED_TURNS]) for conversation in load_fillers(options.unrelated, split)]


def whole_words(tokenizer: Any) -> list[str]:
    """The words that are one token for a tokenizer: letters, three at least, capitals only at the start, behind a space."""
    words = (WORD.fullmatch(token) for token in tokenizer.get_vocab())
    return sorted({word["letters"] for word in words if word})


def training_words(tokenizer: Any) -> list[str]:
    """All whole words but those that are held out, with a capital or without."""
    held_out = {value.lower() for value in held_out_values()}
    return [word for word in whole_words(tokenizer) if word.lower() not in held_out]

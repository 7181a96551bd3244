"""What `deltamem train` trains on: chats, question-answering sets, or generated facts."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from deltamem.training.documents import DocumentDataset
from deltamem.training.episodes import check_chats
from deltamem.training.facts import FactEpisodeConfig, fact_questions, held_out_values
from deltamem.training.records import read_records
from deltamem.training.sources import SOURCES, read_documents

FACTS = "facts"
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


class FactDataset(Dataset[dict[str, Any]]):
    """Generated fact episodes as chats; episode i depends on the seed and i alone."""

    def __init__(self, count: int, seed: int, config: FactEpisodeConfig, questions: int, words: Sequence[str] = ()) -> None:
        self.count, self.seed, self.config, self.questions, self.words = count, seed, config, questions, words

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}-{index}")
        asked = fact_questions(rng, self.config, words=self.words)
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
    """The chats that the options name.

    Args:
        options: the data.
        facts: what generated facts look like.
        episodes: how many of them are generated.
        seed: of whatever is drawn.
        tokenizer: its whole words are what `facts.any_word` draws from.

    Raises:
        ValueError: data that is not there, or of another format.
    """
    chats = _chats(options, facts, episodes, seed, tokenizer)
    return chats if options.system is None else WithSystemPrompt(chats, options.system)


def _chats(options: DataArguments, facts: FactEpisodeConfig, episodes: int, seed: int, tokenizer: Any) -> Any:
    if options.data == FACTS:
        return FactDataset(episodes, seed, facts, options.questions, training_words(tokenizer) if facts.any_word else ())
    kind, _, source = options.data.partition(":")
    if kind in SOURCES and source:
        documents = read_documents(kind, read_records(source, options.data_split, options.data_config))
        return DocumentDataset(documents, options.questions, seed)
    return check_chats(read_records(options.data, options.data_split, options.data_config))


def whole_words(tokenizer: Any) -> list[str]:
    """The words that are one token for a tokenizer: letters, three at least, capitals only at the start, behind a space."""
    words = (WORD.fullmatch(token) for token in tokenizer.get_vocab())
    return sorted({word["letters"] for word in words if word})


def training_words(tokenizer: Any) -> list[str]:
    """All whole words but those that are held out, with a capital or without."""
    held_out = {value.lower() for value in held_out_values()}
    return [word for word in whole_words(tokenizer) if word.lower() not in held_out]

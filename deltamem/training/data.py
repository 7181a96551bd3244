"""The data that `deltamem train` trains on: chats, question-answering sets, or generated facts."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from deltamem.chat.tokens import render, system_prompt
from deltamem.config import WriteUnit
from deltamem.training.chats import Chat, naming, read_episodes, read_talk, with_questions
from deltamem.training.documents import DocumentDataset
from deltamem.training.episodes import EpisodeEncoder
from deltamem.training.facts import FactEpisodeConfig, Split, fact_questions, held_out_values, load_fillers
from deltamem.training.facts.episode import as_messages
from deltamem.training.facts.fillers import CHITCHAT, SMALL_TALK
from deltamem.training.given import Given
from deltamem.training.records import records_of
from deltamem.training.sources import SOURCES, read_documents
from deltamem.training.texts import chitchat_talk, raw_texts
from deltamem.training.views import VIEWS, InViews, Unrelated, in_views_and_controls, view_weights

FACTS, TALK, TEXT = "facts", "talk:", "text:"
# More bytes than a chat template puts around a message.
TEMPLATE_BYTES = 64
# Sources with a held-out part for evaluation.
HELD_OUT = (FACTS, TALK + CHITCHAT)
NUMBER = re.compile(r"[-+.\de]+|nan|inf")
UNRELATED_TURNS = 2
# A word after a space, as byte-level and SentencePiece vocabularies spell it.
WORD = re.compile("[Ġ▁](?P<letters>[A-Za-z][a-z]{2,})")


@dataclass
class DataArguments:
    """The training data and how it is read."""

    data: list[str] = field(
        default_factory=lambda: [FACTS],
        metadata={
            "help": 'Chats {"messages": [...]} that end with a question: a JSON Lines file, a folder, or a Hub name. '
            f"talk:SOURCE for chats continued from any message; FORMAT:SOURCE for question answering, where FORMAT is "
            f'one of {", ".join(SOURCES)}; "facts" for generated ones. Mix several by weight:  facts=0.3 talk:chitchat=0.7.'
        },
    )
    data_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub."})
    data_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub that has several."})
    system: str | None = field(default=None, metadata={"help": "System prompt for chats that have none."})
    questions: int = field(
        default=1, metadata={"help": "Maximum questions per history, for facts and documents; chats set their own."}
    )
    answer_only: bool = field(default=False, metadata={"help": "Train on the answer only, not on the header of its turn."})
    max_write_tokens: int = field(
        default=8192, metadata={"help": "Maximum tokens of a history; longer ones lose their beginning."}
    )
    max_read_tokens: int = field(
        default=512, metadata={"help": "Maximum tokens of questions and answers; longer ones are an error."}
    )
    talk_tokens: int = field(default=64, metadata={"help": "Maximum tokens read of talk and of unrelated text."})
    label_talk: bool = field(
        default=True,
        metadata={"help": "Count the words of talk as answers; without, only a teacher (--teacher_weight) is followed there."},
    )
    reads: int = field(
        default=1, metadata={"help": "Read passes per history, each in its own view; talk is read from several points."}
    )
    views: list[str] = field(
        default_factory=lambda: ["memory=1"],
        metadata={"help": f"Ways of using the memory and their sampling weights, VIEW=WEIGHT:  {', '.join(VIEWS)}."},
    )
    unrelated: list[str] = field(
        default_factory=lambda: [SMALL_TALK],
        metadata={
            "help": 'Sources of the view "unrelated", drawn equally often: small_talk, chitchat, questions and answers as '
            '--fillers takes, or text:SOURCE for raw texts: records {"text": ...} or the passages of FORMAT:SOURCE.'
        },
    )
    eval_data: list[str] | None = field(
        default=None,
        metadata={"help": "Data to evaluate on, in the form of --data; defaults to held-out facts when training on facts."},
    )
    eval_episodes: int = field(
        default=64, metadata={"help": "Maximum generated facts, or chats of --eval_data, to evaluate on."}
    )

    def encoder(self, tokenizer: Any, write: WriteUnit = "token", whole: bool = False) -> EpisodeEncoder:
        """Create the encoder of the episodes; see `EpisodeEncoder`."""
        limits = self.max_write_tokens, self.max_read_tokens, self.talk_tokens
        return EpisodeEncoder(tokenizer, write, self.answer_only, *limits, label_talk=self.label_talk, whole=whole)


class FactDataset(Dataset[dict[str, Any]]):
    """Generated fact episodes as chats; the questions after a history are each about something else told in it.

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


class Mixed(Dataset[dict[str, Any]]):
    """A weighted mixture of sources; which chat is at an index depends only on the seed and the index.

    Args:
        parts: the sources.
        weights: relative sampling weights of the sources.
        count: number of chats.
        seed: seeds the sampling.
    """

    def __init__(self, parts: Sequence[Any], weights: Sequence[float], count: int, seed: int) -> None:
        self.parts, self.weights, self.count, self.seed = parts, weights, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}-mixed-{index}")
        (part,) = rng.choices(self.parts, self.weights)
        chat: dict[str, Any] = part[rng.randrange(len(part))]
        return chat


class WithSystemPrompt(Dataset[dict[str, Any]]):
    """Chats, with a system prompt prepended to those that have none."""

    def __init__(self, chats: Any, system: str) -> None:
        self.chats, self.system = chats, system

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chat = self.chats[index]
        if system_prompt(chat["messages"]):
            return dict(chat)
        return {**chat, "messages": [{"role": "system", "content": self.system}, *chat["messages"]]}


def training_chats(options: DataArguments, facts: FactEpisodeConfig, episodes: int, seed: int, tokenizer: Any) -> Any:
    """Build the training set: chats, each with the views it is read in.

    Args:
        options: the data options.
        facts: the options of generated facts.
        episodes: number of chats to generate or to mix.
        seed: seeds all sampling.
        tokenizer: supplies the whole words that `facts.any_word` draws from; its chat template must accept the chats.

    Raises:
        ValueError: data is missing or malformed; a view is unknown; facts or mixed sources have no number of episodes; the chat
            template rejects a chat.
    """
    sources = source_weights(options.data)
    if episodes < 1 and (FACTS in sources or len(sources) > 1):
        raise ValueError(
            "as many facts, or chats of several sources, are drawn as the steps take, and none end an epoch; give --max_steps, "
            "at least 1"
        )
    words = training_words(tokenizer) if facts.any_word else ()
    generated = FactDataset(episodes, seed, facts, options.questions, words)
    chats = _chats(options, sources, generated, "train", tokenizer)
    return InViews(chats, view_weights(options.views), seed, _unrelated(options, "train"), options.reads)


def eval_chats(options: DataArguments, facts: FactEpisodeConfig, seed: int, tokenizer: Any) -> dict[str, Any]:
    """Build the evaluation sets, by name: the chats once in every trained view and once for every control.

    Raises:
        ValueError: data is missing or malformed; the training data has no held-out part and `eval_data` is not given; the
            tokenizer's template rejects a chat.
    """
    views = [*view_weights(options.views)]
    sources = source_weights(options.eval_data or options.data)
    if options.eval_data is None and any(name not in HELD_OUT for name in sources):
        raise ValueError("to evaluate while training, give chats that are not trained on: --eval_data")
    facts = dataclasses.replace(facts, any_word=0.0)  # held-out values come from the attributes alone
    held_out = FactDataset(options.eval_episodes, seed, facts, options.questions, split="held_out")
    chats = _chats(options, sources, held_out, "held_out", tokenizer)
    # By index: generated chats have a length, but iterating over them would not stop there.
    several = (with_questions(chats[place]) for place in range(len(chats)))
    asked = [*itertools.islice((chat for chat in several if chat.get("read_turns", 1)), options.eval_episodes)]
    return in_views_and_controls(asked, views, _unrelated(options, "held_out"), seed)


def source_weights(given: Sequence[str]) -> dict[str, float]:
    """Parse sources of chats and their weights from texts such as "facts=0.3", or "facts" if it is the only one.

    Raises:
        ValueError: a source is given twice, or a weight is not a positive number.
    """
    weights: dict[str, float] = {}
    for text in given:
        name, sign, number = text.rpartition("=")
        weighted = bool(sign) and NUMBER.fullmatch(number) is not None
        name = name if weighted else text
        if name in weights or not name:
            raise ValueError(f"--data {' '.join(given)} has {name!r} twice or without a name; give SOURCE=WEIGHT, each once")
        weights[name] = float(number) if weighted else 1.0
        if not 0 < weights[name] < float("inf"):
            raise ValueError(f"{text!r} has no weight; give SOURCE=WEIGHT with a number above 0, such as {name}=0.5")
    return weights


def _chats(options: DataArguments, sources: Mapping[str, float], generated: FactDataset, split: Split, tokenizer: Any) -> Any:
    parts = {name: generated if name == FACTS else _read_chats(options, name, generated.seed, split) for name in sources}
    for name, part in parts.items():
        places = range(1 if name == FACTS else len(part))
        check_chats(options.encoder(tokenizer), _with_system(options, part), places, view_weights(options.views))
    if len(parts) == 1:
        return _with_system(options, *parts.values())
    return _with_system(options, Mixed([*parts.values()], [*sources.values()], len(generated), generated.seed))


def _with_system(options: DataArguments, chats: Any) -> Any:
    return chats if options.system is None else WithSystemPrompt(chats, options.system)


def check_chats(encoder: EpisodeEncoder, chats: Any, places: Iterable[int], views: Iterable[str]) -> None:
    """Check that the chat template accepts the chats, trying one for each order of roles, and that none is too long to read.

    Args:
        encoder: has the tokenizer and the limits.
        chats: a data set, which need not end.
        places: the chats to check.
        views: how they are read.

    Raises:
        ValueError: the template rejects a chat, with its own message, or the questions of one have too many tokens; it names
            the chat's place.
    """
    seen = set()
    reads = [{"view": view} for view in views]
    for chat in (chats[place] for place in places):
        with naming(chat):
            roles = tuple(message["role"] for message in chat["messages"])
            if roles not in seen:
                seen.add(roles)
                render(encoder.tokenizer, chat["messages"])
        if _may_be_too_long(chat, encoder.max_read_tokens):
            encoder({**chat, "reads": reads})


def _may_be_too_long(chat: Chat, tokens: int) -> bool:
    """Whether the questions may have more tokens than this: a token is at least a byte, and counting these is much faster."""
    if chat.get("talk"):
        return False  # is cut
    read = [*system_prompt(chat["messages"]), *chat["messages"][-2 * chat.get("read_turns", 1) :]]
    return sum(len(message["content"].encode()) + TEMPLATE_BYTES for message in read) > tokens


def _read_chats(options: DataArguments, data: str, seed: int, split: Split) -> Any:
    kind, _, source = data.partition(":")
    if data == TALK + CHITCHAT:
        return chitchat_talk(split)
    if kind == "talk" and source:
        return read_talk(_records(options, source))
    if kind in SOURCES and source:
        return DocumentDataset(read_documents(kind, _records(options, source)), options.questions, seed)
    return read_episodes(_records(options, data))


def _records(options: DataArguments, source: str) -> Iterator[Given]:
    return records_of(source, options.data_split, options.data_config)


def _unrelated(options: DataArguments, split: Split) -> Unrelated:
    """Load the sources of the view "unrelated"."""
    if all(VIEWS[view].own for view in view_weights(options.views)):
        return []
    return [
        raw_texts(source.removeprefix(TEXT), split)
        if source.startswith(TEXT)
        else [as_messages(conversation[:UNRELATED_TURNS]) for conversation in load_fillers(source, split)]
        for source in options.unrelated
    ]


def whole_words(tokenizer: Any) -> list[str]:
    """The tokenizer's single-token words: at least three letters, capitalised at most at the start, after a space."""
    words = (WORD.fullmatch(token) for token in tokenizer.get_vocab())
    return sorted({word["letters"] for word in words if word})


def training_words(tokenizer: Any) -> list[str]:
    """All whole words except the held-out values, whatever their capitalisation."""
    held_out = {value.lower() for value in held_out_values()}
    return [word for word in whole_words(tokenizer) if word.lower() not in held_out]

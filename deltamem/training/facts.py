"""Seeded episodes in which a chat states facts about people and then asks for one of them.

An episode can only be answered by remembering its history: names, attributes and values are paired at random.
"held_out" episodes are about people, and in sentences, that "train" never has; "unseen_values" episodes in addition
about values, words that were never an answer in training.
"""

import functools
import importlib.resources
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

Split = Literal["train", "held_out", "unseen_values"]
Part = Literal["train", "held_out"]  # of the data: what training may use, and what it may not
Messages = list[dict[str, str]]

# Also the most facts of an episode: there are ten attributes, and of each ten held-out values, to tell apart.
_CANDIDATES = 10
_KNOWN_PERSON = 1 / 3  # how often a further fact is about a person already mentioned


class _Data(TypedDict):
    names: dict[Part, list[str]]
    attributes: dict[str, dict[str, dict[Part, list[str]]]]  # of each: "values", "statements", "questions"
    fillers: list[list[str]]
    acknowledgements: list[str]


@functools.cache
def _data() -> _Data:
    text = importlib.resources.files("deltamem.training").joinpath("facts.json").read_text(encoding="utf-8")
    data: _Data = json.loads(text)
    return data


@dataclass(frozen=True)
class Fact:
    """One thing that is told about one person."""

    name: str
    attribute: str
    value: str


@dataclass(frozen=True)
class FactEpisode:
    """A chat that tells facts, then asks for one of them.

    ``messages`` is the history, the question (user) and the answer (assistant) in the OpenAI/transformers
    chat format, without a system message. ``facts`` are in the order in which they were told. ``candidates``
    are the ten values that the answer is ranked among, sorted: every value told for the asked attribute, and
    others of the same split.
    """

    messages: Messages
    facts: tuple[Fact, ...]
    asked: Fact
    candidates: tuple[str, ...]

    @property
    def history(self) -> Messages:
        """The messages before the question."""
        return self.messages[:-2]

    @property
    def question(self) -> dict[str, str]:
        """The user message that asks for a fact."""
        return self.messages[-2]

    @property
    def answer(self) -> str:
        """The asked value alone, as it was told."""
        return self.messages[-1]["content"]

    def to_dict(self) -> dict[str, Messages]:
        """The episode as one record of a chat data set."""
        return {"messages": self.messages}


@dataclass(frozen=True)
class FactEpisodeConfig:
    """What an episode looks like.

    ``min_facts`` and ``max_facts`` bound how many facts are told, ``max_fillers`` how many turns of small
    talk stand before, between and after them; both numbers are drawn uniformly. ``separate_turns`` is the
    probability that an episode tells each fact in a turn of its own instead of all facts in one message.
    ``same_attribute`` is the probability that a further fact takes an attribute already told of another
    person, with another value; otherwise its attribute is a new one. ``values`` limits the attributes to their first
    values; ``any_word`` is the probability that a fact's value is any of the given words, and none of the attribute's.
    """

    min_facts: int = 1
    max_facts: int = 1
    max_fillers: int = 0
    separate_turns: float = 0.0
    same_attribute: float = 0.0
    values: int | None = None
    any_word: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_facts <= self.max_facts <= _CANDIDATES:
            raise ValueError(
                f"min_facts={self.min_facts} and max_facts={self.max_facts} are no valid bounds: "
                f"choose 1 <= min_facts <= max_facts <= {_CANDIDATES}"
            )
        available = len(_data()["fillers"])
        if not 0 <= self.max_fillers <= available:
            raise ValueError(f"max_fillers={self.max_fillers} is out of range: choose 0 to {available}")
        if self.values is not None and self.values < _CANDIDATES:
            raise ValueError(f"values={self.values} is too few: choose {_CANDIDATES} or more, or None for all")
        for field in ("separate_turns", "same_attribute", "any_word"):
            probability = getattr(self, field)
            if not 0 <= probability <= 1:
                raise ValueError(f"{field}={probability} is no probability: choose a number from 0 to 1")


def fact_episode(rng: random.Random, config: FactEpisodeConfig, split: Split = "train") -> FactEpisode:
    """Draw one episode, using only the names, values and templates of ``split``."""
    facts, history = _draw_history(rng, config, split)
    return _ask(rng, facts, history, rng.choice(facts), config, split)


def fact_questions(
    rng: random.Random, config: FactEpisodeConfig, split: Split = "train", words: Sequence[str] = ()
) -> list[FactEpisode]:
    """Draw one history and ask for every fact of it: as many episodes, alike but for the question.

    ``words`` are those that ``config.any_word`` draws from; leave out `held_out_values`, if these are to stay unseen.
    """
    facts, history = _draw_history(rng, config, split, words)
    return [_ask(rng, facts, history, fact, config, split) for fact in facts]


def fact_episodes(
    count: int,
    seed: int,
    config: FactEpisodeConfig,
    split: Split = "train",
) -> list[FactEpisode]:
    """Draw ``count`` episodes; each has a generator of its own, so that it does not depend on ``count``."""
    if count < 0:
        raise ValueError(f"count={count} is negative: choose 0 or more episodes")
    return [fact_episode(random.Random(f"{seed}-{index}"), config, split) for index in range(count)]


def held_out_values() -> set[str]:
    """All values of "unseen_values" episodes."""
    return {value for attribute in _data()["attributes"].values() for value in attribute["values"]["held_out"]}


def _draw_history(
    rng: random.Random, config: FactEpisodeConfig, split: Split, words: Sequence[str] = ()
) -> tuple[list[Fact], Messages]:
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is unknown: choose one of {', '.join(map(repr, get_args(Split)))}")
    if config.any_word and not words:
        raise ValueError(f"any_word={config.any_word} needs words to draw from, got none")
    facts = _draw_facts(rng, config, split, words)
    return facts, _history(rng, facts, config, split)


def _ask(
    rng: random.Random, facts: list[Fact], history: Messages, asked: Fact, config: FactEpisodeConfig, split: Split
) -> FactEpisode:
    messages = history + _turn(_sentence(rng, "questions", asked, split), asked.value)
    return FactEpisode(messages, tuple(facts), asked, _draw_candidates(rng, facts, asked, config, split))


def _draw_facts(rng: random.Random, config: FactEpisodeConfig, split: Split, words: Sequence[str]) -> list[Fact]:
    facts: list[Fact] = []
    for _ in range(rng.randint(config.min_facts, config.max_facts)):
        attribute = _draw_attribute(rng, facts, config.same_attribute)
        name = _draw_name(rng, facts, attribute, split)
        any_word = rng.random() < config.any_word if config.any_word else False
        values = words if any_word else _untold_values(facts, attribute, config, split)
        facts.append(Fact(name, attribute, rng.choice(values)))
    return facts


def _draw_attribute(rng: random.Random, facts: list[Fact], same_attribute: float) -> str:
    used = list(dict.fromkeys(fact.attribute for fact in facts))
    if used and rng.random() < same_attribute:
        return rng.choice(used)
    return rng.choice([attribute for attribute in _data()["attributes"] if attribute not in used])


def _draw_name(rng: random.Random, facts: list[Fact], attribute: str, split: Split) -> str:
    mentioned = dict.fromkeys(fact.name for fact in facts)
    having = {fact.name for fact in facts if fact.attribute == attribute}
    lacking = [name for name in mentioned if name not in having]
    if lacking and rng.random() < _KNOWN_PERSON:
        return rng.choice(lacking)
    return rng.choice([name for name in _data()["names"][_wording(split)] if name not in mentioned])


def _draw_candidates(
    rng: random.Random, facts: list[Fact], asked: Fact, config: FactEpisodeConfig, split: Split
) -> tuple[str, ...]:
    told = [fact.value for fact in facts if fact.attribute == asked.attribute]
    others = rng.sample(_untold_values(facts, asked.attribute, config, split), _CANDIDATES - len(told))
    return tuple(sorted(told + others))


def _untold_values(facts: list[Fact], attribute: str, config: FactEpisodeConfig, split: Split) -> list[str]:
    told = [fact.value for fact in facts if fact.attribute == attribute]
    part: Part = "held_out" if split == "unseen_values" else "train"
    pool = _data()["attributes"][attribute]["values"][part][: config.values]
    return [value for value in pool if value not in told]


def _history(rng: random.Random, facts: list[Fact], config: FactEpisodeConfig, split: Split) -> Messages:
    told = [_sentence(rng, "statements", fact, split) for fact in facts]
    if rng.random() >= config.separate_turns:
        told = [" ".join(told)]
    turns = [[text, rng.choice(_data()["acknowledgements"])] for text in told]
    for filler in rng.sample(_data()["fillers"], rng.randint(0, config.max_fillers)):
        turns.insert(rng.randint(0, len(turns)), filler)
    return [message for user, assistant in turns for message in _turn(user, assistant)]


def _sentence(rng: random.Random, kind: str, fact: Fact, split: Split) -> str:
    template = rng.choice(_data()["attributes"][fact.attribute][kind][_wording(split)])
    return template.format(name=fact.name, value=fact.value)


def _turn(user: str, assistant: str) -> Messages:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _wording(split: Split) -> Part:
    """Where a split's names and sentences come from."""
    return "train" if split == "train" else "held_out"

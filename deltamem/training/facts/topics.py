"""Draws what an episode tells: which person has which values of which attribute, and the question about it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deltamem.training.facts.config import CANDIDATES, FactEpisodeConfig
from deltamem.training.facts.episode import Fact, Kind
from deltamem.training.facts.vocabulary import USER, Split, attributes, names, values

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MOST_OF_ONE_PERSON = 5  # values of one attribute
_KNOWN_PERSON = 1 / 3  # how often a further fact is about a person already mentioned


@dataclass(frozen=True)
class Topic:
    """A person's values of one attribute (one value, an older and a newer one, or several), and the question about them."""

    name: str
    attribute: str
    values: tuple[str, ...]
    kind: Kind

    @property
    def facts(self) -> list[Fact]:
        """The facts to tell, in order; an update replaces the value before it."""
        if self.kind == "update":
            old, new = self.values
            return [Fact(self.name, self.attribute, old), Fact(self.name, self.attribute, new, replaced=old)]
        return [Fact(self.name, self.attribute, value) for value in self.values]

    @property
    def asked(self) -> Fact:
        """The fact asked about, with the answer as its value."""
        if self.kind == "count":
            return Fact(self.name, self.attribute, NUMBERS[len(self.values) - 1])
        if self.kind == "list":
            return Fact(self.name, self.attribute, enumerated(self.values))
        return self.facts[-1]


def enumerated(several: Sequence[str]) -> str:
    """Join values into one answer: "chess, pottery and sailing"."""
    return " and ".join([", ".join(several[:-1]), several[-1]] if len(several) > 1 else several)


def draw_topics(rng: random.Random, config: FactEpisodeConfig, split: Split, words: Sequence[str]) -> list[Topic]:
    """Draw the topics for all facts of an episode.

    The first is of the kind drawn. Later ones are as well, as long as there is room: a list needs two facts left to tell, and
    no attribute has more than ten values told.
    """
    topics: list[Topic] = []
    left = rng.randint(config.min_facts, config.max_facts)
    while left:
        topic = _draw_topic(rng, topics, left, config, split, words)
        topics.append(topic)
        left -= 1 if topic.kind == "update" else len(topic.values)
    return topics


def untold_values(attribute: str, told: Sequence[str], config: FactEpisodeConfig, split: Split) -> list[str]:
    """The values of an attribute that have not been told."""
    return [value for value in values(attribute, split)[: config.values] if value not in told]


def _draw_topic(
    rng: random.Random, topics: list[Topic], left: int, config: FactEpisodeConfig, split: Split, words: Sequence[str]
) -> Topic:
    told = _told(topics)
    room = {attribute: CANDIDATES - told[attribute] for attribute in attributes()}
    several = {attribute: free for attribute, free in room.items() if "several" in attributes()[attribute]}
    kind = _draw_kind(rng, config)
    least = 2 if kind == "list" else 1
    most = min(left, max(several.values()), MOST_OF_ONE_PERSON)
    if kind in ("count", "list") and least <= most:
        count, open_to = rng.randint(least, most), several
    else:
        kind = "update" if rng.random() < config.updates else "value"
        count, open_to = 2 if kind == "update" else 1, room
    attribute = _draw_attribute(rng, topics, [name for name, free in open_to.items() if free >= count], config.same_attribute)
    return Topic(
        _draw_name(rng, topics, attribute, config, split),
        attribute,
        _draw_values(rng, topics, attribute, count, config, split, words),
        kind,
    )


def _draw_kind(rng: random.Random, config: FactEpisodeConfig) -> Kind:
    point = rng.random()
    if point < config.counting:
        return "count"
    return "list" if point < config.counting + config.lists else "value"


def _told(topics: list[Topic]) -> Counter[str]:
    """Count the values told, by attribute."""
    return Counter(topic.attribute for topic in topics for _ in topic.values)


def _draw_attribute(rng: random.Random, topics: list[Topic], attributes: list[str], same_attribute: float) -> str:
    told = _told(topics)
    used = [attribute for attribute in attributes if told[attribute]]
    unused = [attribute for attribute in attributes if not told[attribute]]
    if used and (not unused or rng.random() < same_attribute):
        return rng.choice(used)
    return rng.choice(unused)


def _draw_name(rng: random.Random, topics: list[Topic], attribute: str, config: FactEpisodeConfig, split: Split) -> str:
    having = {topic.name for topic in topics if topic.attribute == attribute}
    if config.first_person and rng.random() < config.first_person and USER not in having:
        return USER
    mentioned = dict.fromkeys(topic.name for topic in topics)
    lacking = [name for name in mentioned if name not in having]
    strangers = [name for name in names(split) if name not in mentioned]
    if lacking and (not strangers or rng.random() < _KNOWN_PERSON):
        return rng.choice(lacking)
    return rng.choice(strangers)


def _draw_values(
    rng: random.Random,
    topics: list[Topic],
    attribute: str,
    count: int,
    config: FactEpisodeConfig,
    split: Split,
    words: Sequence[str],
) -> tuple[str, ...]:
    told = [value for topic in topics if topic.attribute == attribute for value in topic.values]
    before = len(told)
    for _ in range(count):
        any_word = rng.random() < config.any_word if config.any_word else False
        told.append(_untold_word(rng, words, told) if any_word else rng.choice(untold_values(attribute, told, config, split)))
    return tuple(told[before:])


def _untold_word(rng: random.Random, words: Sequence[str], told: Sequence[str]) -> str:
    drawn = rng.sample(words, min(len(words), len(told) + 1))
    untold = [word for word in drawn if word not in told]
    if not untold:
        raise ValueError(f"any_word draws from {len(words)} words, too few to tell apart: give {CANDIDATES} or more")
    return untold[0]

"""Draws episodes at random."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar, get_args

from deltamem.training.facts.answers import sentence
from deltamem.training.facts.config import CANDIDATES, FactEpisodeConfig
from deltamem.training.facts.distance import fill, words_in
from deltamem.training.facts.episode import Fact, FactEpisode, Kind, Messages, Turn, as_messages
from deltamem.training.facts.fillers import filler_turns, load_fillers
from deltamem.training.facts.topics import NUMBERS, Topic, draw_topics, enumerated, untold_values
from deltamem.training.facts.vocabulary import Split, acknowledgements, templates

T = TypeVar("T")
QUESTIONS: dict[Kind, str] = {
    "value": "questions",
    "update": "questions",
    "count": "count_questions",
    "list": "list_questions",
}


def fact_episode(rng: random.Random, config: FactEpisodeConfig, split: Split = "train") -> FactEpisode:
    """Draw one episode, using only the names, values, templates and fillers of ``split``."""
    topics, facts, history = _tell(rng, config, split, ())
    asked = rng.choice([topic for topic in topics if topic.kind == topics[0].kind])
    return _ask(rng, facts, history, asked, config, split)


def fact_questions(
    rng: random.Random, config: FactEpisodeConfig, split: Split = "train", words: Sequence[str] = ()
) -> list[FactEpisode]:
    """Draw one history and ask about everything told in it, in one episode per question.

    The first episode follows ``config``'s mixture of kinds exactly, the others as far as there are enough facts.
    ``config.any_word`` draws from ``words``; leave out `held_out_values` if these are to stay unseen.
    """
    topics, facts, history = _tell(rng, config, split, words)
    return [_ask(rng, facts, history, topic, config, split) for topic in topics]


def fact_episodes(
    count: int,
    seed: int,
    config: FactEpisodeConfig,
    split: Split = "train",
) -> list[FactEpisode]:
    """Draw ``count`` episodes; each has its own generator, so that it does not depend on ``count``."""
    if count < 0:
        raise ValueError(f"count={count} is negative: choose 0 or more episodes")
    return [fact_episode(random.Random(f"{seed}-{index}"), config, split) for index in range(count)]


def _tell(
    rng: random.Random, config: FactEpisodeConfig, split: Split, words: Sequence[str]
) -> tuple[list[Topic], tuple[Fact, ...], Messages]:
    """Draw what is told: as topics (the first follows the kinds' probabilities exactly), as facts in order, and as a chat."""
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is unknown: choose one of {', '.join(map(repr, get_args(Split)))}")
    if config.any_word and not words:
        raise ValueError(f"any_word={config.any_word} needs words to draw from, got none")
    topics = draw_topics(rng, config, split, words)
    told = _interleaved(rng, [[(topic, fact) for fact in topic.facts] for topic in topics])
    history = _history(rng, [_statement(rng, topic, fact, split) for topic, fact in told], config, split)
    return topics, tuple(fact for _, fact in told), history


def _ask(
    rng: random.Random, facts: tuple[Fact, ...], history: Messages, topic: Topic, config: FactEpisodeConfig, split: Split
) -> FactEpisode:
    question = _sentence(rng, QUESTIONS[topic.kind], topic.asked, split)
    messages = history + as_messages([(question, _answer(rng, topic, config, split))])
    candidates = _draw_candidates(rng, facts, topic, config, split)
    return FactEpisode(messages, facts, topic.asked, tuple(sorted(candidates)), topic.kind)


def _answer(rng: random.Random, topic: Topic, config: FactEpisodeConfig, split: Split) -> str:
    stated = topic.kind in ("value", "update")
    if stated and config.sentence_answers and rng.random() < config.sentence_answers:
        return sentence(rng, topic.asked, split)
    return topic.asked.value


def _draw_candidates(
    rng: random.Random, facts: Sequence[Fact], topic: Topic, config: FactEpisodeConfig, split: Split
) -> Sequence[str]:
    if topic.kind == "count":
        return NUMBERS
    told = [fact.value for fact in facts if fact.attribute == topic.attribute]
    values = told + rng.sample(untold_values(topic.attribute, told, config, split), CANDIDATES - len(told))
    if topic.kind != "list":
        return values
    length = len(topic.values)
    wrong = [several for several in itertools.combinations(values, length) if {*several} != {*topic.values}]
    lists = [rng.sample(several, length) for several in rng.sample(wrong, CANDIDATES - 1)]
    return [topic.asked.value, *map(enumerated, lists)]


def _history(rng: random.Random, told: list[str], config: FactEpisodeConfig, split: Split) -> Messages:
    if rng.random() >= config.separate_turns:
        told = [" ".join(told)]
    turns = [(text, rng.choice(acknowledgements())) for text in told]
    fillers = _fillers(rng, config, split)
    between = [*itertools.islice(fillers, rng.randint(config.min_fillers, config.max_fillers))]
    after = fill(fillers, rng.randint(0, config.filler_words_after), words_in)
    return as_messages(_interleaved(rng, [turns, between])) + after


def _fillers(rng: random.Random, config: FactEpisodeConfig, split: Split) -> Iterator[Turn]:
    """The filler turns of an episode; a generator, so that nothing is loaded if none is taken."""
    yield from filler_turns(load_fillers(config.fillers, split), rng)


def _interleaved(rng: random.Random, rows: Sequence[Sequence[T]]) -> list[T]:
    """Interleave rows at random, keeping the order within each row."""
    order = [row for row, items in enumerate(rows) for _ in items]
    rng.shuffle(order)
    remaining = [iter(items) for items in rows]
    return [next(remaining[row]) for row in order]


def _statement(rng: random.Random, topic: Topic, fact: Fact, split: Split) -> str:
    if fact.replaced is not None:
        return _sentence(rng, "updates", fact, split)
    return _sentence(rng, "several" if topic.kind in ("count", "list") else "statements", fact, split)


def _sentence(rng: random.Random, kind: str, fact: Fact, split: Split) -> str:
    return rng.choice(templates(fact.attribute, kind, split, fact.name)).format(name=fact.name, value=fact.value)

"""Needle in a haystack: the number of one key, hidden in noise among those of other keys."""

from __future__ import annotations

import random
from collections.abc import Sequence

from deltamem.evaluation.history import HistoryQuestion
from deltamem.evaluation.ruler.haystack import CANDIDATES, HaystackTask, haystack_tasks
from deltamem.evaluation.task import Options, share

NAME = "needle"
NEEDLE = "One of the special magic numbers for {key} is: {value}."
INSTRUCTION = "What is the special magic number for {key} mentioned in the provided text?"
ANSWER_START = "The special magic number for {key} mentioned in the provided text is"
MAX_NEW_TOKENS = 128
ADJECTIVES = ("amber", "brave", "calm", "dusty", "eager", "gentle", "hollow", "jolly", "mellow", "nimble", "odd", "proud")
NOUNS = ("anchor", "basket", "candle", "desert", "engine", "falcon", "garden", "harbor", "jacket", "kettle", "lantern", "piano")
KEYS = [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]


def tasks(options: Options) -> list[HaystackTask]:
    """Create a task per number of needles (`--facts`; 1 is RULER's single needle, 4 its multi-key task) and per length.

    Raises:
        ValueError: a number is out of range.
    """
    if max(options.facts) > len(KEYS):
        raise ValueError(f"--facts {max(options.facts)} is not accepted; {NAME} has keys for at most {len(KEYS)} needles")
    return haystack_tasks(NAME, "needles", _drawn, share("string_match_all"), MAX_NEW_TOKENS, options)


def _drawn(number: int, needles: int, seed: int) -> tuple[HistoryQuestion, Sequence[str]]:
    """Draw a question and its needles; its candidates are the other needles' numbers, filled up with random ones."""
    rng = random.Random(f"{NAME}-{seed}-{number}")
    keys = rng.sample(KEYS, needles)
    values = [str(value) for value in rng.sample(range(1_000_000, 10_000_000), max(needles, CANDIDATES))]
    sentences = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=False)]
    question = HistoryQuestion(
        number,
        str(number),
        INSTRUCTION.format(key=keys[0]),
        (values[0],),
        tuple(values[1:CANDIDATES]),
        query=keys[0],
        answer_start=ANSWER_START.format(key=keys[0]),
    )
    rng.shuffle(sentences)
    return question, sentences

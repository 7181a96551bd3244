"""Variable tracking: find the variables that hold a value, in chains of assignments scattered through noise."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from deltamem.evaluation.history import HistoryQuestion
from deltamem.evaluation.ruler.haystack import CANDIDATES, HaystackTask, haystack_tasks
from deltamem.evaluation.task import Metric, Options, mean

NAME = "variable_tracking"
HOPS = 4  # as in RULER: five variables hold a value
INSTRUCTION = (
    "Variables are assigned in the provided text: a number, or the value of another variable. Find all {count} variables that "
    "are assigned the value {value} in the text, directly or through others."
)
ANSWER_START = "The {count} variables with the value {value} are:"
MAX_NEW_TOKENS = 30


def tasks(options: Options) -> list[HaystackTask]:
    """Create a task per number of chains (`--facts`) and per length. Unlike RULER, the prompt has no example.

    Raises:
        ValueError: a number is out of range.
    """
    return haystack_tasks(NAME, "chains", _drawn, Metric("string_match_all", mean), MAX_NEW_TOKENS, options)


def _drawn(number: int, chains: int, seed: int) -> tuple[HistoryQuestion, Sequence[str]]:
    """Draw a question about the first chain; its candidates are variables of other chains, filled up with random ones."""
    rng = random.Random(f"{NAME}-{seed}-{number}")
    length = HOPS + 1
    names = _names(rng, chains * length + CANDIDATES)
    told = [names[start : start + length] for start in range(0, chains * length, length)]
    values = rng.sample(range(10_000, 100_000), chains)
    assignments = _interleaved(rng, [_chain(variables, value) for variables, value in zip(told, values, strict=True)])
    asked = {"count": length, "value": values[0]}
    question = HistoryQuestion(
        number,
        str(number),
        INSTRUCTION.format(**asked),
        tuple(told[0]),
        tuple(names[length : length + CANDIDATES - 1]),
        query=str(values[0]),
        answer_start=ANSWER_START.format(**asked),
    )
    return question, assignments


def _chain(names: Sequence[str], value: int) -> list[str]:
    sources = [str(value), *(f"VAR {name}" for name in names)]
    return [f"VAR {name} = {source}" for name, source in zip(names, sources, strict=False)]


def _interleaved(rng: random.Random, chains: Sequence[Sequence[str]]) -> list[str]:
    """Interleave the chains' assignments at random, keeping each chain's order."""
    turns = [place for place, chain in enumerate(chains) for _ in chain]
    rng.shuffle(turns)
    left = [iter(chain) for chain in chains]
    return [next(left[place]) for place in turns]


def _names(rng: random.Random, count: int) -> list[str]:
    """Draw `count` distinct five-letter names."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    return list(names)

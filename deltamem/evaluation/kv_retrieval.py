"""Key-value retrieval (arXiv 2307.03172, "Lost in the middle"): the value of one key among several, all random UUIDs."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.task import Options, share
from deltamem.training.given import Given

NAME = "kv_retrieval"
INSTRUCTION = 'Extract the value of the key below from the JSON data that you were given.\nKey: "{key}"\nValue:'
MAX_NEW_TOKENS = 100
CANDIDATES = 10
PAIRS_PER_SECTION = 15  # about 1,000 tokens


@dataclass(frozen=True)
class Record:
    """Key-value pairs, and the one asked for.

    Args:
        pairs: the pairs, in the order told.
        key, value: the pair asked for.
    """

    pairs: tuple[tuple[str, str], ...]
    key: str
    value: str


def tasks(options: Options) -> list[HistoryTask]:
    """Create the task from the data or, without data, one for each `--facts`, the number of generated pairs.

    Raises:
        ValueError: the data is missing or malformed; a number is out of range.
    """
    if options.data is not None or options.data_dir is not None:
        records = [_checked(record) for record in benchmark_records(NAME, None, options)]
        return [_task(NAME, records, options, identity(options))]
    if min(options.facts) < 1:
        raise ValueError(f"--facts {min(options.facts)} is too few; give 1 or more pairs")
    return [_generated(pairs, options) for pairs in options.facts]


def judge(question: HistoryQuestion, prediction: str) -> dict[str, float]:
    """The published score: whether the answer contains the value."""
    return {"accuracy": float(question.golds[0].lower() in prediction.lower())}


def _generated(pairs: int, options: Options) -> HistoryTask:
    records = [_drawn(pairs, random.Random(f"{NAME}-{options.seed}-{number}")) for number in range(options.episodes)]
    chosen = {"pairs": pairs, "episodes": options.episodes, "limit": options.limit}
    return _task(f"{NAME}-{pairs}", records, options, chosen)


def _task(name: str, records: Sequence[Record], options: Options, chosen: dict[str, Any]) -> HistoryTask:
    numbers = sampled_numbers(len(records), options)
    return HistoryTask(
        name=name,
        histories={str(number): _history(records[number]) for number in numbers},
        questions=[_question(number, records[number]) for number in numbers],
        judge=judge,
        metrics={"accuracy": share("accuracy")},
        identity=chosen,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _question(number: int, record: Record) -> HistoryQuestion:
    """Create a question; its candidates are the values of other keys, filled up with random values if there are too few."""
    rng = random.Random(f"{NAME}-{number}")
    others = [value for key, value in record.pairs if key != record.key]
    wrong = rng.sample(others, min(CANDIDATES - 1, len(others)))
    wrong += [_uuid(rng) for _ in range(CANDIDATES - 1 - len(wrong))]
    return HistoryQuestion(
        number, str(number), INSTRUCTION.format(key=record.key), (record.value,), tuple(wrong), query=record.key
    )


def _history(record: Record) -> History:
    starts = range(0, len(record.pairs), PAIRS_PER_SECTION)
    sections = [json.dumps(dict(record.pairs[start : start + PAIRS_PER_SECTION]), indent=1) for start in starts]
    return History(tuple(sections), tuple(f'"{key}": "{value}"' for key, value in record.pairs))


def _drawn(count: int, rng: random.Random) -> Record:
    pairs = tuple((_uuid(rng), _uuid(rng)) for _ in range(count))
    return Record(pairs, *rng.choice(pairs))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _checked(record: Given) -> Record:
    pairs = tuple((key.text(), value.text()) for key, value in record["ordered_kv_records"].pairs())
    asked = record["key"].text(), record["value"].text()
    if asked not in pairs:
        record["key"].refuse("a key of ordered_kv_records, with its value as value")
    return Record(pairs, *asked)

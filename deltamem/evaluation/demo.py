"""Implements `deltamem demo`: a frozen model recalls facts from its memory once they have left the context."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from deltamem.backbones import SHIPPED_SYSTEM, Placement, kv_numbers, load_adapted
from deltamem.chat.session import ChatSession
from deltamem.evaluation.recall import SETTINGS, Recall, RecallTest, Setting
from deltamem.io.printable import all_printable
from deltamem.io.progress import work_progress
from deltamem.training.facts import FactEpisode, FactEpisodeConfig, Split, fact_episodes, fact_questions

NUMBERS_OF_FACTS = (1, 4)
SHOWN: dict[Setting, str] = {
    "memory": "its memory",
    "no_memory": "no memory",
    "zero_memory": "an empty memory",
    "shuffled_memory": "another memory",
}


def run(model: str | None, adapter: str | None, episodes: int, seed: int, placement: Placement) -> dict[str, Any]:
    """Ask for one episode's facts, then measure recall over held-out episodes.

    Args:
        model: the backbone, a folder or a Hub name; None for the adapter's own.
        adapter: the adapter, a folder or a Hub name; None for the shipped one.
        episodes: number of held-out episodes for each number of facts.
        seed: seeds the episodes.
        placement: the backbone's device and dtype.

    Returns:
        `accuracy` by setting and number of facts (people and sentences not seen in training; the answer ranked first among
        ten), `generated` likewise (the answer generated exactly), `unseen_values` and `unseen_generated` by number of facts
        (also with values that were never an answer in training), `chance`, `memory_bytes`, `kv_cache_bytes` and `examples`.
    """
    test = RecallTest(*load_adapted(adapter, model, placement), system=SHIPPED_SYSTEM)
    with work_progress() as progress:
        measure = partial(_recall, test, episodes, seed, progress)
        accuracy, generated = measure("held_out", SETTINGS)
        unseen, unseen_generated = measure("unseen_values", ("memory",))
    most = _told(NUMBERS_OF_FACTS[-1])
    questions, others = (fact_questions(random.Random(f"{seed}-{who}"), most, "held_out") for who in ("told", "others"))
    told = questions[0]
    return {
        "accuracy": accuracy,
        "generated": generated,
        "unseen_values": unseen["memory"],
        "unseen_generated": unseen_generated["memory"],
        "chance": 1 / len(told.candidates),
        "episodes": episodes,
        "memory_bytes": test.model.new_memory().nbytes,
        "kv_cache_bytes": _kv_cache_bytes(test, told),
        "told": [message["content"] for message in told.history if message["role"] == "user"],
        "examples": _examples(test, questions, others[0]),
    }


def _told(facts: int) -> FactEpisodeConfig:
    return FactEpisodeConfig(min_facts=facts, max_facts=facts)


def _recall(
    test: RecallTest, episodes: int, seed: int, progress: Progress, split: Split, settings: Sequence[Setting]
) -> list[dict[str, dict[str, float]]]:
    """Recall by setting and number of facts: of answers ranked first, and of answers generated exactly."""
    recalls: dict[int, list[Recall]] = {}
    for facts in NUMBERS_OF_FACTS:
        task = progress.add_task(f"{split.replace('_', ' ')}: {_plural(facts)}", total=episodes)
        drawn = fact_episodes(episodes, seed, _told(facts), split)
        recalls[facts] = test.run(drawn, settings, step=partial(progress.advance, task))
    return [
        {
            setting: {str(facts): getattr(recalls[facts][index], measured) for facts in NUMBERS_OF_FACTS}
            for index, setting in enumerate(settings)
        }
        for measured in ("accuracy", "generated")
    ]


def _plural(facts: int) -> str:
    return "1 fact" if facts == 1 else f"{facts} facts"


def print_result(result: dict[str, Any]) -> None:
    """Print the result of `run` as tables."""
    result = all_printable(result)  # a model may generate any character
    console = Console()
    console.print("\n[bold]Told, then dropped from the context:[/]", *result["told"])
    examples = Table("question", "right answer", *(f"with {name}" for name in SHOWN.values() if name != "an empty memory"))
    for row in result["examples"]:
        examples.add_row(*(row[key] for key in ("question", "answer", "memory", "no_memory", "shuffled_memory")))
    console.print(examples)
    recall = Table("ranked first among ten / generated exactly", *map(_plural, NUMBERS_OF_FACTS))
    for setting, name in SHOWN.items():
        recall.add_row(f"with {name}", *_percentages(result["accuracy"][setting], result["generated"][setting]))
    unseen = _percentages(result["unseen_values"], result["unseen_generated"])
    recall.add_row("with its memory, of words never trained on", *unseen)
    recall.add_row("chance", *(f"{result['chance']:.0%} / -" for _ in NUMBERS_OF_FACTS))
    console.print(recall)
    console.print(
        f"{result['episodes']} held-out episodes for each number of facts. One memory takes {result['memory_bytes']:,} bytes; "
        f"the KV cache of the text above takes {result['kv_cache_bytes']:,}.\n"
    )


def _percentages(ranked: dict[str, float], generated: dict[str, float]) -> list[str]:
    return [f"{ranked[str(facts)]:.0%} / {generated[str(facts)]:.0%}" for facts in NUMBERS_OF_FACTS]


def _examples(test: RecallTest, questions: Sequence[FactEpisode], others: FactEpisode) -> list[dict[str, str]]:
    """Ask for every fact of an episode with its own memory, without one, and with another episode's memory."""
    chat, other_chat = (ChatSession(test.model, test.tokenizer, system=SHIPPED_SYSTEM) for _ in range(2))
    chat.observe(questions[0].history)
    other_chat.observe(others.history)
    rows = []
    for episode in questions:
        row = {"question": episode.question["content"], "answer": episode.answer}
        for setting, memory in (("memory", chat.memory), ("no_memory", chat.memory), ("shuffled_memory", other_chat.memory)):
            with test.under("no_memory" if setting == "no_memory" else "memory", memory):
                row[setting] = test.answer(episode)
        rows.append(row)
    return rows


def _kv_cache_bytes(test: RecallTest, episode: FactEpisode) -> int:
    """The size of the KV cache that keeps an episode's history in context."""
    return test.history_tokens(episode) * kv_numbers(test.model.config) * test.model.dtype.itemsize

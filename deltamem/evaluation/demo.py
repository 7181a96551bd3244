"""Implements `deltamem demo`: a frozen model answers from its memory about what has left the context."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from deltamem.backbones import Placement, kv_numbers, load_adapted
from deltamem.chat.session import ChatSession
from deltamem.evaluation.recall import SETTINGS, Recall, RecallTest, Setting
from deltamem.io.printable import all_printable
from deltamem.io.progress import work_progress
from deltamem.memory.state import DeltaMemState
from deltamem.training.facts import FactEpisode, FactEpisodeConfig, Split, fact_episodes, fact_questions
from deltamem.training.facts.config import CANDIDATES

NUMBERS_OF_FACTS = (1, 4)
# The conversation: each fact in its own turn, with other talk before, between and after.
TOLD = FactEpisodeConfig(min_facts=3, max_facts=3, separate_turns=1.0, min_fillers=2, max_fillers=2)
UNRELATED = ("What is the capital of France?", "How are you today?")
SHOWN: dict[Setting, str] = {
    "memory": "its memory",
    "no_memory": "no memory",
    "zero_memory": "an empty memory",
    "shuffled_memory": "a stranger's memory",
}
COMPARED: tuple[Setting, ...] = ("memory", "no_memory", "shuffled_memory")


@dataclass(frozen=True)
class Demo:
    """A model to show.

    Args:
        test: asks it.
        seed: seeds the episodes.
    """

    test: RecallTest
    seed: int = 0

    @classmethod
    def load(cls, model: str | None, adapter: str | None, seed: int, placement: Placement) -> Demo:
        """Load the model.

        Args:
            model: the backbone, a folder or a Hub name; None for the adapter's own.
            adapter: the adapter, a folder or a Hub name; None for the shipped one.
            seed: seeds the episodes.
            placement: the backbone's device and dtype.

        Raises:
            ValueError, OSError: the model or the adapter cannot be loaded; the message says why.
        """
        return cls(RecallTest(*load_adapted(adapter, model, placement)), seed)

    def conversation(self) -> dict[str, Any]:
        """Tell facts in passing, drop the context, and ask: for the facts, and for something unrelated.

        Returns:
            `told`, the conversation's messages; `examples`, for each question its `question`, right `answer` (None if it is
            unrelated), and what was answered with its `memory`, with `no_memory` and with a stranger's (`shuffled_memory`);
            `memory_bytes`; and `kv_cache_bytes`, the size of the KV cache that would keep the conversation in the context.
        """
        questions, strangers = (
            fact_questions(random.Random(f"{self.seed}-{who}"), TOLD, "held_out") for who in ("told", "others")
        )
        memory, other = (self._told(episodes[0]) for episodes in (questions, strangers))
        asked = [(episode.question["content"], episode.answer) for episode in questions]
        examples = [
            {"question": question, "answer": answer, **self._answers(question, memory, other)}
            for question, answer in [*asked, *((question, None) for question in UNRELATED)]
        ]
        return {
            "told": questions[0].history,
            "examples": examples,
            "memory_bytes": memory.nbytes,
            "kv_cache_bytes": self._kv_cache_bytes(questions[0]),
        }

    def recall(self, episodes: int) -> dict[str, Any]:
        """Measure recall.

        Args:
            episodes: number of held-out episodes for each number of facts.

        Returns:
            `accuracy` by setting and number of facts (people and sentences not seen in training; the answer ranked first among
            ten), `named` likewise (the generated answer names it and no other of the ten), `unseen_values` and `unseen_named`
            by number of facts (also with values that were never an answer in training), `chance` and `episodes`.
        """
        with work_progress() as progress:
            measure = partial(self._recall, episodes, progress)
            accuracy, named = measure("held_out", SETTINGS)
            unseen, unseen_named = measure("unseen_values", ("memory",))
        return {
            "accuracy": accuracy,
            "named": named,
            "unseen_values": unseen["memory"],
            "unseen_named": unseen_named["memory"],
            "chance": 1 / CANDIDATES,
            "episodes": episodes,
        }

    def _told(self, episode: FactEpisode) -> DeltaMemState:
        chat = ChatSession(self.test.model, self.test.tokenizer)
        chat.observe(episode.history)
        return chat.memory

    def _answers(self, question: str, memory: DeltaMemState, other: DeltaMemState) -> dict[str, str]:
        answers: dict[str, str] = {}
        for setting in COMPARED:
            read = other if setting == "shuffled_memory" else memory
            with self.test.under("no_memory" if setting == "no_memory" else "memory", read):
                answers[setting] = self.test.answer(question)
        return answers

    def _kv_cache_bytes(self, episode: FactEpisode) -> int:
        """The size of the KV cache that keeps an episode's history in context."""
        model = self.test.model
        return self.test.history_tokens(episode) * kv_numbers(model.config) * int(model.dtype.itemsize)

    def _recall(
        self, episodes: int, progress: Progress, split: Split, settings: Sequence[Setting]
    ) -> list[dict[str, dict[str, float]]]:
        """Recall by setting and number of facts: of answers ranked first, and of answers named when asked."""
        recalls: dict[int, list[Recall]] = {}
        for facts in NUMBERS_OF_FACTS:
            task = progress.add_task(f"{split.replace('_', ' ')}: {_plural(facts)}", total=episodes)
            drawn = fact_episodes(episodes, self.seed, _facts(facts), split)
            recalls[facts] = self.test.run(drawn, settings, step=partial(progress.advance, task))
        return [
            {
                setting: {str(facts): getattr(recalls[facts][index], measured) for facts in NUMBERS_OF_FACTS}
                for index, setting in enumerate(settings)
            }
            for measured in ("accuracy", "said_right")
        ]


def print_conversation(shown: dict[str, Any]) -> None:
    """Print the result of `Demo.conversation`."""
    shown = all_printable(shown)  # a model may generate any character
    console = Console(highlight=False)
    console.print("\n[bold]Told in passing:[/]")
    for message in shown["told"]:
        console.print(f"  {message['role']}: {message['content']}", markup=False)
    console.print(
        f"\n[bold]The context is dropped.[/] Its KV cache took {shown['kv_cache_bytes']:,} bytes; the memory takes "
        f"{shown['memory_bytes']:,}."
    )
    table = Table("question", "right answer", *(f"with {SHOWN[setting]}" for setting in COMPARED))
    for row in shown["examples"]:
        table.add_row(row["question"], row["answer"] or "(unrelated)", *(escape(row[setting]) for setting in COMPARED))
    console.print(table)


def print_recall(recall: dict[str, Any]) -> None:
    """Print the result of `Demo.recall` as a table."""
    table = Table("ranked first among ten / named in the answer", *map(_plural, NUMBERS_OF_FACTS))
    for setting, name in SHOWN.items():
        table.add_row(f"with {name}", *_percentages(recall["accuracy"][setting], recall["named"][setting]))
    table.add_row("with its memory, of words never trained on", *_percentages(recall["unseen_values"], recall["unseen_named"]))
    table.add_row("chance", *(f"{recall['chance']:.0%} / -" for _ in NUMBERS_OF_FACTS))
    console = Console()
    console.print(table)
    console.print(f"{recall['episodes']} held-out episodes for each number of facts.\n")


def _facts(number: int) -> FactEpisodeConfig:
    return FactEpisodeConfig(min_facts=number, max_facts=number)


def _plural(facts: int) -> str:
    return "1 fact" if facts == 1 else f"{facts} facts"


def _percentages(ranked: dict[str, float], generated: dict[str, float]) -> list[str]:
    return [f"{ranked[str(facts)]:.0%} / {generated[str(facts)]:.0%}" for facts in NUMBERS_OF_FACTS]

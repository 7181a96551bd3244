"""Does an adapter cost general ability? Questions unrelated to its memory, asked with and without it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from peft import PeftModel

from deltamem.chat.tokens import Message
from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.scoring import Score, Text, score
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Metric, Options, Row
from deltamem.memory.state import DeltaMemState
from deltamem.training.facts import FactEpisodeConfig, fact_episode
from deltamem.training.given import Given

# none: the bare backbone. zero: an empty memory, nothing is written. filled: a memory that holds a conversation, different for
# each question, nothing is written. writing: an empty memory that the question is written to. adapter: an adapter without a
# memory.
BARE, FILLED, ADAPTER = "none", "filled", "adapter"
SETTINGS = (BARE, "zero", FILLED, "writing")
# The conversation in a filled memory: four facts, with small talk between them.
CONVERSATION = FactEpisodeConfig(min_facts=4, max_facts=4, separate_turns=0.5, min_fillers=2, max_fillers=6)


class Question(Protocol):
    """Continuations of texts, and the interpretation of their scores."""

    @property
    def texts(self) -> Sequence[tuple[str, str]]:
        """The texts to score: contexts with their continuations."""

    def figures(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Derive the question's figures from the scores, one for each text."""


@dataclass
class OffTask:
    """A benchmark whose questions are answered by scoring continuations.

    Args:
        name: the benchmark's name.
        questions: the questions, by their numbers in the data.
        metrics: computed from the questions' figures.
        identity: the options that selected the questions.
        seed: seeds the conversations that fill memories.
    """

    name: str
    questions: dict[int, Question]
    metrics: dict[str, Metric]
    identity: dict[str, Any]
    seed: int
    _texts: list[tuple[int, list[Text]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.questions)

    def settings(self, subject: Subject) -> tuple[str, ...]:
        """See `Task`."""
        return off_task_settings(subject)

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """See `Task`; sorts questions longest first, which makes batches uniform and shows at once if memory runs out."""
        texts = {
            number: [Text.from_text(subject.tokenizer, *text) for text in question.texts]
            for number, question in self.questions.items()
        }
        self._texts = sorted(texts.items(), key=lambda item: -_longest(item[1]))
        subject.check_window(_longest(self._texts[0][1]), f"the longest text of {self.name}")

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """See `Task`."""
        batch = [self._texts[place] for place in places]
        return {setting: self._rows(subject, setting, batch) for setting in settings}

    def _rows(self, subject: Subject, setting: str, batch: Sequence[tuple[int, list[Text]]]) -> list[Row]:
        asked_of = [number for number, texts in batch for _ in texts]
        texts = [text for _, several in batch for text in several]
        with self._under(subject, setting, asked_of, texts):
            scores = iter(score(subject, texts, with_adapter=setting == ADAPTER))
        return [
            {"index": number, **self.questions[number].figures([next(scores) for _ in several])} for number, several in batch
        ]

    def _under(
        self, subject: Subject, setting: str, asked_of: Sequence[int], texts: Sequence[Text]
    ) -> AbstractContextManager[Any]:
        """The context of a setting, for texts of the questions with these numbers."""
        if setting == BARE:
            return subject.bare()
        if setting == ADAPTER:
            return nullcontext()
        if setting == FILLED:
            return cast(AbstractContextManager[Any], subject.model.memory(self._filled(subject, asked_of), write=False))
        memory = subject.model.new_memory(len(texts))
        if setting == "zero":
            return cast(AbstractContextManager[Any], subject.model.memory(memory, write=False))
        segment_ids = None
        if subject.model.active_peft_config.writes_segments:  # a text is one segment
            segment_ids = subject.left_padded([torch.zeros_like(text.ids) for text in texts], fill=-1)[0]
        return cast(AbstractContextManager[Any], subject.model.memory(memory, segment_ids=segment_ids))

    def _filled(self, subject: Subject, asked_of: Sequence[int]) -> DeltaMemState:
        """The memory of each text's conversation, one per question, `[texts]`."""
        numbers = [*dict.fromkeys(asked_of)]
        memory = subject.write([conversation(self.seed, number) for number in numbers])
        return DeltaMemState.stack(memory[numbers.index(number)] for number in asked_of)


def off_task_settings(subject: Subject) -> tuple[str, ...]:
    """The settings of a benchmark that is unrelated to the memory."""
    if subject.has_memory:
        return SETTINGS
    return (BARE, ADAPTER) if isinstance(subject.model, PeftModel) else (BARE,)


def conversation(seed: int, number: int) -> Sequence[Message]:
    """Generate the conversation for a question's number, unrelated to that question."""
    return fact_episode(random.Random(f"{seed}-{number}"), CONVERSATION, "held_out").history


def off_task(
    name: str,
    hub: tuple[str, str | None, str],
    metrics: dict[str, Metric],
    question: Callable[[Given], Question],
    options: Options,
) -> OffTask:
    """Create a benchmark task from the questions that the options select.

    Args:
        name: the benchmark's name, which is also its file's name in a folder of data.
        hub: its official data set, configuration and split.
        metrics: computed from the questions' figures.
        question: creates a question from a record.
        options: the command's options.

    Raises:
        ValueError: the data is missing or malformed.
    """
    questions = [question(record) for record in benchmark_records(name, hub, options)]
    chosen = {number: questions[number] for number in sampled_numbers(len(questions), options)}
    return OffTask(name, chosen, metrics, identity(options), options.seed)


def _longest(texts: Sequence[Text]) -> int:
    return max(len(text.ids) for text in texts)

"""Sentences hidden in noise, whose length is measured with the model's tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deltamem.evaluation.benchmark_data import sampled_numbers
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Metric, Options

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
LINES_PER_SECTION = 10  # about 250 tokens
CANDIDATES = 10


@dataclass(kw_only=True)
class HaystackTask(HistoryTask):
    """A `HistoryTask` whose histories are noise with sentences hidden in it.

    Args:
        hidden: the hidden sentences of each history, in the order told.
        tokens: maximum length of a history.
        Others: see `HistoryTask`; `histories` are generated in `prepare`, once the tokenizer is known.
    """

    hidden: Mapping[str, Sequence[str]]
    tokens: int

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """See `Task`.

        Raises:
            ValueError: the hidden sentences exceed the length of a history, or a history exceeds the window.
        """
        self.histories = {key: self._haystack(subject, key, sentences) for key, sentences in self.hidden.items()}
        super().prepare(subject, settings)

    def _haystack(self, subject: Subject, key: str, sentences: Sequence[str]) -> History:
        taken, per_line = (
            len(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in ("\n".join(sentences) + "\n", NOISE + "\n")
        )
        if taken > self.tokens:
            raise ValueError(f"--context-tokens {self.tokens} is too few: what {self.name} hides takes {taken} tokens alone")
        lines = [NOISE] * ((self.tokens - taken) // per_line)
        places = sorted(random.Random(f"{self.name}-{self.seed}-{key}").choices(range(len(lines) + 1), k=len(sentences)))
        for place, sentence in reversed([*zip(places, sentences, strict=True)]):
            lines.insert(place, sentence)
        starts = range(0, len(lines), LINES_PER_SECTION)
        return History(tuple("\n".join(lines[start : start + LINES_PER_SECTION]) for start in starts), tuple(lines))


def haystack_tasks(
    name: str,
    what: str,
    draw: Callable[[int, int, int], tuple[HistoryQuestion, Sequence[str]]],
    metric: Metric,
    max_new_tokens: int,
    options: Options,
) -> list[HaystackTask]:
    """Create a task for every number of hidden items, `--facts`, and every length.

    Args:
        name: the task's name.
        what: the plural noun for what is hidden.
        draw: draws a question and its hidden sentences from the question's number, the number of items, and the seed.
        metric: aggregates `string_match_all`.
        max_new_tokens: maximum tokens of an answer.
        options: the command's options.

    Raises:
        ValueError: a number of hidden items is below 1.
    """
    if min(options.facts) < 1:
        raise ValueError(f"--facts {min(options.facts)} is too few; give 1 or more {what}")

    def task(count: int, tokens: int) -> HaystackTask:
        drawn = [draw(number, count, options.seed) for number in sampled_numbers(options.episodes, options)]
        return HaystackTask(
            name=f"{name}-{count}-{tokens}_tokens",
            histories={},
            hidden={question.history: sentences for question, sentences in drawn},
            tokens=tokens,
            questions=[question for question, _ in drawn],
            judge=string_match_all,
            metrics={"string_match_all": metric},
            identity={what: count, "tokens": tokens, "episodes": options.episodes, "limit": options.limit},
            max_new_tokens=max_new_tokens,
            seed=options.seed,
        )

    return [task(count, tokens) for count in options.facts for tokens in options.context_tokens]


def string_match_all(question: HistoryQuestion, prediction: str) -> dict[str, float]:
    """RULER's score: the share of gold answers that the prediction contains."""
    contained = [gold.lower() in prediction.lower() for gold in question.golds]
    return {"string_match_all": sum(contained) / len(contained)}

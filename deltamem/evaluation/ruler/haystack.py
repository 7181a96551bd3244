"""Sentences hidden in noise, which is as long as the model's tokenizer makes it."""

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
LINES_PER_SECTION = 10  # some 250 tokens
CANDIDATES = 10


@dataclass(kw_only=True)
class HaystackTask(HistoryTask):
    """A `HistoryTask` whose histories are noise with sentences hidden in it.

    Args:
        hidden: by history, its sentences in the order in which they are told.
        tokens: length of a history, at most.
        Others: see `HistoryTask`; `histories` are made when the tokenizer is known.
    """

    hidden: Mapping[str, Sequence[str]]
    tokens: int

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """See `Task`.

        Raises:
            ValueError: the sentences alone are longer than a history may be, or a history than the window.
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
    """A task for every number of hidden things, `--facts`, and every length.

    Args:
        name: of the task.
        what: is hidden, in one word.
        draw: a question and the sentences that are hidden, from its number, how much is hidden, and the seed.
        metric: of `string_match_all`.
        max_new_tokens: of an answer.
        options: of the command.

    Raises:
        ValueError: nothing is hidden.
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
    """RULER's score: the share of the golds that the answer contains."""
    contained = [gold.lower() in prediction.lower() for gold in question.golds]
    return {"string_match_all": sum(contained) / len(contained)}

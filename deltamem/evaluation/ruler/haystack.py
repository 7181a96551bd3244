"""Sentences hidden in noise, which is as long as the model's tokenizer makes it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltamem.evaluation.history_task import History, HistoryQuestion, HistoryTask
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options

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


def string_match_all(question: HistoryQuestion, prediction: str) -> dict[str, float]:
    """RULER's score: the share of the golds that the answer contains."""
    contained = [gold.lower() in prediction.lower() for gold in question.golds]
    return {"string_match_all": sum(contained) / len(contained)}


def check(options: Options, what: str) -> None:
    """Make sure that something is hidden.

    Args:
        options: their `facts` say how much.
        what: is hidden.

    Raises:
        ValueError: nothing is.
    """
    if min(options.facts) < 1:
        raise ValueError(f"--facts {min(options.facts)} is too few; give 1 or more {what}")

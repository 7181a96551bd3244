"""ARC-Easy: grade-school science questions, scored by ranking the choices as lm-evaluation-harness does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltamem.evaluation.off_task import OffTask, off_task
from deltamem.evaluation.scoring import Score
from deltamem.evaluation.task import Options, share
from deltamem.training.given import Given

NAME = "arc_easy"
HUB = ("allenai/ai2_arc", "ARC-Easy", "test")
# acc: the choice with the highest likelihood. acc_norm: the highest per character.
METRICS = {"acc": share("acc"), "acc_norm": share("acc_norm")}


@dataclass(frozen=True)
class MultipleChoice:
    """A multiple-choice question.

    Args:
        query: the question.
        choices: the answers.
        gold: the index of the right choice.
    """

    query: str
    choices: tuple[str, ...]
    gold: int

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The question, paired with each of its choices."""
        return [(f"{self.query}\nAnswer:", f" {choice}") for choice in self.choices]

    def figures(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Whether the right choice has the highest likelihood, in total and per character."""
        likelihoods = [score.log_likelihood for score in scores]
        by_length = [likelihood / len(choice) for likelihood, choice in zip(likelihoods, self.choices, strict=True)]
        return {
            "log_likelihoods": likelihoods,
            "gold": self.gold,
            "acc": float(likelihoods.index(max(likelihoods)) == self.gold),
            "acc_norm": float(by_length.index(max(by_length)) == self.gold),
        }


def tasks(options: Options) -> list[OffTask]:
    """Create the task.

    Raises:
        ValueError: the data is missing or malformed.
    """
    return [off_task(NAME, HUB, METRICS, _question, options)]


def _question(record: Given) -> MultipleChoice:
    """Parse a Hub row, `{"question", "choices": {"text", "label"}, "answerKey"}`, or `{"query", "choices", "gold"}`."""
    if record["query"].is_given:
        choices = [choice.text() for choice in record["choices"].items()]
        return MultipleChoice(record["query"].text(), tuple(choices), record["gold"].number(range(len(choices))))
    texts, labels = ([part.text() for part in record["choices"][name].items()] for name in ("text", "label"))
    if len(texts) != len(labels):
        record["choices"]["label"].refuse(f"as many as there are texts, {len(texts)}")
    if record["answerKey"].text() not in labels:
        record["answerKey"].refuse(f"a label, {', '.join(labels)}")
    return MultipleChoice(f"Question: {record['question'].text()}", tuple(texts), labels.index(record["answerKey"].text()))

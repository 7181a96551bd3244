"""LAMBADA, in OpenAI's version: the last word of a passage, which only the whole passage tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltamem.evaluation.off_task import OffTask, off_task
from deltamem.evaluation.scoring import Score
from deltamem.evaluation.task import Options, perplexity, share
from deltamem.training.given import Given

NAME = "lambada_openai"
HUB = ("EleutherAI/lambada_openai", "en", "test")
# acc: all tokens of the word are the likeliest. perplexity: of the word, not of its tokens.
METRICS = {"acc": share("acc"), "perplexity": perplexity("log_likelihood")}


@dataclass(frozen=True)
class LastWord:
    """A passage whose last word is to be told.

    Args:
        passage: what stands before it.
        word: the word.
    """

    passage: str
    word: str

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The passage with its word."""
        return [(self.passage, f" {self.word}")]

    def figures(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Whether the word is what the model would say, and how likely it is."""
        (score,) = scores
        return {"acc": float(score.greedy), "log_likelihood": score.log_likelihood}


def tasks(options: Options) -> list[OffTask]:
    """The task, as one.

    Raises:
        ValueError: no data, or of another format.
    """
    return [off_task(NAME, HUB, METRICS, _question, options)]


def _question(record: Given) -> LastWord:
    """Of `{"text"}` of several words, or of `{"context", "continuation"}`."""
    if not record["text"].is_given:
        return LastWord(record["context"].text(), record["continuation"].text().removeprefix(" "))
    passage, _, word = record["text"].text().rpartition(" ")
    if not passage.strip() or not word.strip():
        record["text"].refuse("a text of several words that ends with one")
    return LastWord(passage, word)

"""LAMBADA, in OpenAI's version: predict a passage's last word, which takes the whole passage."""

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
# acc: whether greedy decoding yields the word. perplexity: per word, not per token.
METRICS = {"acc": share("acc"), "perplexity": perplexity("log_likelihood")}


@dataclass(frozen=True)
class LastWord:
    """A passage whose last word is to be predicted.

    Args:
        passage: the text before the word.
        word: the last word.
    """

    passage: str
    word: str

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The passage with its word."""
        return [(self.passage, f" {self.word}")]

    def figures(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Whether greedy decoding yields the word, and its log-likelihood."""
        (score,) = scores
        return {"acc": float(score.greedy), "log_likelihood": score.log_likelihood}


def tasks(options: Options) -> list[OffTask]:
    """Create the task.

    Raises:
        ValueError: the data is missing or malformed.
    """
    return [off_task(NAME, HUB, METRICS, _question, options)]


def _question(record: Given) -> LastWord:
    """Parse `{"text"}` with several words, or `{"context", "continuation"}`."""
    if not record["text"].is_given:
        return LastWord(record["context"].text(), record["continuation"].text().removeprefix(" "))
    passage, _, word = record["text"].text().rpartition(" ")
    if not passage.strip() or not word.strip():
        record["text"].refuse("a text of several words that ends with one")
    return LastWord(passage, word)

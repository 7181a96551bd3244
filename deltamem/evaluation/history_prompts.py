"""The prompts under each setting of a task about histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltamem.backbones import tail_tokens
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.retrieval import Search
from deltamem.evaluation.subject import Subject

WHOLE = ("full", "full+memory")  # settings with the whole history in the prompt
SEARCHED = ("bm25", "bm25+memory")  # settings with retrieved passages in the prompt


@dataclass
class HistoryPrompts:
    """Builds the prompts.

    Args:
        retrieved: how many passages a search adds to a prompt.
    """

    retrieved: int
    _searches: dict[str, Search] = field(default_factory=dict)
    _tails: dict[str, Tensor] = field(default_factory=dict)

    def index(self, histories: Mapping[str, History]) -> None:
        """Build a search index over the passages of each history."""
        self._searches = {key: Search(history.passages) for key, history in histories.items()}

    def of(self, subject: Subject, setting: str, question: HistoryQuestion, history: History) -> Tensor:
        """Tokenise the prompt for a question about a history, `[tokens]`."""
        before: Sequence[str] = ()
        if setting in WHOLE:
            return question.tokens(subject, history.sections, history.chat)
        if setting in SEARCHED:
            before = self._searches[question.history].find(question.query or question.prompt, self.retrieved)
        prompt = question.tokens(subject, before, history.system)
        if setting != "tail":
            return prompt
        return torch.cat([self._tail(subject, question.history, history), prompt])

    def _tail(self, subject: Subject, key: str, history: History) -> Tensor:
        """The last tokens of a history, tokenised once."""
        if key not in self._tails:
            self._tails[key] = subject.tokens(history.messages).last(tail_tokens(subject.model)).ids
        return self._tails[key]

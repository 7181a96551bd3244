"""A text with questions as an episode: the text is told, and the questions come once it has left the context."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

ACKNOWLEDGEMENT = "Okay."


@dataclass(frozen=True)
class Document:
    """A text and questions about it.

    Args:
        passages: the text, in parts that are told one after another.
        questions: pairs of a question and its answer.
    """

    passages: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]

    def chat(self, asked: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Build the chat that tells the passages and asks the given questions, in the form an `EpisodeCollator` takes."""
        turns = [(passage, ACKNOWLEDGEMENT) for passage in self.passages] + [*asked]
        messages = [
            {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return {"messages": messages, "read_turns": len(asked)}


class DocumentDataset(Dataset[dict[str, Any]]):
    """Documents as chats; which questions are asked depends only on the seed and the document's index.

    Args:
        documents: each with at least one question.
        questions: maximum number of questions after each history.
        seed: seeds the choice of questions.
    """

    def __init__(self, documents: Sequence[Document], questions: int, seed: int) -> None:
        self.documents, self.questions, self.seed = documents, questions, seed

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        document = self.documents[index]
        rng = random.Random(f"{self.seed}-{index}")
        return document.chat(rng.sample(document.questions, min(self.questions, len(document.questions))))

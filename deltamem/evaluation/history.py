"""Histories, and questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deltamem.chat.tokens import Message, system_prompt, told
from deltamem.evaluation.subject import Subject


@dataclass(frozen=True)
class History:
    """The text that questions are about.

    Args:
        sections: its sections, each a message when it is put into a prompt or written to the memory.
        passages: the units that a search retrieves.
        chat: a chat in place of sections, put before a prompt or written to the memory as it is; its system prompt precedes
            every prompt.
    """

    sections: tuple[str, ...]
    passages: tuple[str, ...]
    chat: tuple[Message, ...] = ()

    @classmethod
    def of_chat(cls, messages: Sequence[Message]) -> History:
        """Create a history from a chat; each message, except the system prompt, can be retrieved."""
        said = messages[len(system_prompt(messages)) :]
        return cls((), tuple(f"{message['role']}: {message['content']}" for message in said), tuple(messages))

    @property
    def system(self) -> list[Message]:
        """The chat's own system prompt as a single message; empty if it has none."""
        return system_prompt(self.chat)

    @property
    def parts(self) -> list[list[Message]]:
        """The history as a chat, split into parts to be written one by one. Each starts with a user's message or with the chat.

        So no part is a system prompt alone, which some chat templates refuse.
        """
        if not self.chat:
            return [told(section) for section in self.sections]
        starts = [place for place, message in enumerate(self.chat) if message["role"] == "user"][1:]
        return [[*self.chat[start:end]] for start, end in pairwise([0, *starts, len(self.chat)])]

    @property
    def messages(self) -> list[Message]:
        """The history as a chat, to be written."""
        return [message for part in self.parts for message in part]


@dataclass(frozen=True)
class HistoryQuestion:
    """A question about a history.

    Args:
        number: its number in the data.
        history: the key of its history.
        prompt: the user's message, including any instruction.
        golds: accepted answers; the first one's likelihood is measured.
        wrong: candidates to rank the first gold against; empty for no ranking.
        group: its kind, which is summarised separately.
        query: the search query; None for the prompt.
        answer_start: the given beginning of the assistant's turn; the answer follows after a space.
    """

    number: int
    history: str
    prompt: str
    golds: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    group: str | None = None
    query: str | None = None
    answer_start: str = ""

    def tokens(self, subject: Subject, before: Sequence[str] = (), chat: Sequence[Message] = ()) -> Tensor:
        """Tokenise a chat, then the prompt with other texts before it, then the answer's start, `[tokens]`."""
        asked: Message = {"role": "user", "content": "\n\n".join((*before, self.prompt))}
        start = subject.tokenizer(self.answer_start, add_special_tokens=False)["input_ids"]
        ids = [*subject.tokens([*chat, asked], add_generation_prompt=True).ids, *start]
        return torch.tensor(ids, dtype=torch.long, device="cpu")

    def answer_ids(self, subject: Subject, answer: str) -> Tensor:
        """Tokenise an answer as it follows the answer's start, `[tokens]`."""
        return subject.answer_ids(f" {answer}" if self.answer_start else answer)

"""A history, and the questions about it."""

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
    """What the questions are about.

    Args:
        sections: put into a prompt one after the other, or written to the memory, each a message.
        passages: what a search can find.
        chat: in place of sections: put before a prompt, or written to the memory, as it is; its system prompt stands before
            every prompt.
    """

    sections: tuple[str, ...]
    passages: tuple[str, ...]
    chat: tuple[Message, ...] = ()

    @classmethod
    def of_chat(cls, messages: Sequence[Message]) -> History:
        """A chat, of whose messages a search finds those that match; the system prompt is not searched for."""
        said = messages[len(system_prompt(messages)) :]
        return cls((), tuple(f"{message['role']}: {message['content']}" for message in said), tuple(messages))

    @property
    def system(self) -> list[Message]:
        """The chat's own system prompt, as the only message; nothing if it has none."""
        return system_prompt(self.chat)

    @property
    def parts(self) -> list[list[Message]]:
        """As a chat, to be written part by part. Each part of a chat begins with a user's message, the first with the chat.

        So no part is a system prompt alone, which some chat templates refuse.
        """
        if not self.chat:
            return [told(section) for section in self.sections]
        starts = [place for place, message in enumerate(self.chat) if message["role"] == "user"][1:]
        return [[*self.chat[start:end]] for start, end in pairwise([0, *starts, len(self.chat)])]

    @property
    def messages(self) -> list[Message]:
        """As a chat, to be written."""
        return [message for part in self.parts for message in part]


@dataclass(frozen=True)
class HistoryQuestion:
    """A question about a history.

    Args:
        number: in the data.
        history: key of its history.
        prompt: the user's message, with whatever instruction there is.
        golds: accepted answers; the likelihood of the first is measured.
        wrong: candidates that the first gold is ranked among; none for no ranking.
        group: its kind, to be summed up separately.
        query: what is searched for; the prompt if None.
        answer_start: what the assistant's turn has already; an answer goes on behind a space.
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
        """The ids of a chat, of the prompt, behind other texts, and of the answer's start, `[tokens]`."""
        asked: Message = {"role": "user", "content": "\n\n".join((*before, self.prompt))}
        start = subject.tokenizer(self.answer_start, add_special_tokens=False)["input_ids"]
        ids = [*subject.tokens([*chat, asked], add_generation_prompt=True).ids, *start]
        return torch.tensor(ids, dtype=torch.long, device="cpu")

    def answer_ids(self, subject: Subject, answer: str) -> Tensor:
        """The ids of an answer behind its start, `[tokens]`."""
        return subject.answer_ids(f" {answer}" if self.answer_start else answer)

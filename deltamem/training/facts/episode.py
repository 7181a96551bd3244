"""Defines episodes: chats that tell facts and ask about them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Messages = list[dict[str, str]]
Turn = tuple[str, str]  # the user's message and the assistant's answer

# The answer: a value, the newer of two values, the number of values, or all of them.
Kind = Literal["value", "update", "count", "list"]


@dataclass(frozen=True)
class Fact:
    """A fact about one person, or about "the user"; ``replaced`` is the earlier value, if this one replaces it."""

    name: str
    attribute: str
    value: str
    replaced: str | None = None


@dataclass(frozen=True)
class FactEpisode:
    """A chat that tells facts, then asks about one of them.

    ``messages`` is the history, the question (user) and the answer (assistant), the value or a sentence with it, in the
    OpenAI/transformers chat format, without a system message. ``facts`` are in the order in which they were told. ``asked`` has
    the answer as its value: the value told, the newer value (the older is ``asked.replaced``), a number as a
    word, or all values in the order told ("chess, pottery and sailing"), according to ``kind``.
    ``candidates`` are the ten answers that the right one is ranked among, sorted:

    - "value" and "update": every value told for the attribute, about anyone at any time, and others of the same split;
    - "count": the numbers from one to ten; only one to five occur as answers;
    - "list": lists with as many different values, drawn from ten such values.
    """

    messages: Messages
    facts: tuple[Fact, ...]
    asked: Fact
    candidates: tuple[str, ...]
    kind: Kind = "value"

    @property
    def history(self) -> Messages:
        """The messages before the question."""
        return self.messages[:-2]

    @property
    def question(self) -> dict[str, str]:
        """The user message that asks."""
        return self.messages[-2]

    @property
    def answer(self) -> str:
        """The right answer: the value asked for."""
        return self.asked.value

    def to_dict(self) -> dict[str, Messages]:
        """The episode as a record of a chat data set."""
        return {"messages": self.messages}


def as_messages(turns: Iterable[Turn]) -> Messages:
    """Convert turns to the chat format, two messages each."""
    return [
        {"role": role, "content": content} for turn in turns for role, content in zip(("user", "assistant"), turn, strict=True)
    ]

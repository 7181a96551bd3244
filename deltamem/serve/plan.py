"""What a request asks of a memory: which of its messages are context, and which are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltamem.chat.tokens import Message, system_prompt
from deltamem.serve.seen import Seen


@dataclass(frozen=True)
class Plan:
    """A request's chat, divided.

    Args:
        system: the system prompt, as a list of one message; empty if there is none. It is read, and never written.
        before: the messages that were written before, as the client sent them.
        context: those of them that were not forgotten.
        places: the places of `context` in the entries of `Seen`.
        new: the messages that are to be written.
    """

    system: list[Message]
    before: list[Message]
    context: list[Message]
    places: list[int]
    new: list[Message]

    @classmethod
    def of(cls, seen: Seen, messages: Sequence[Message]) -> Plan:
        """Divide a chat. A forgotten message is left out of it, unless it is the last one, which is told again."""
        system = system_prompt(messages)
        chat = [*messages[len(system) :]]
        places = seen.places(chat)
        if len(places) == len(chat) and places and seen.is_forgotten(places[-1]):
            places.pop()
        before, new = chat[: len(places)], chat[len(places) :]
        kept = [(message, place) for message, place in zip(before, places, strict=True) if not seen.is_forgotten(place)]
        return cls(system, before, [message for message, _ in kept], [place for _, place in kept], new)

    @property
    def messages(self) -> list[Message]:
        """The chat as the model sees it."""
        return [*self.system, *self.context, *self.new]

    @property
    def known(self) -> int:
        """How many of `messages` are not written."""
        return len(self.system) + len(self.context)

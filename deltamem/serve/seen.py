"""Which messages of a request were written to a memory before, although the client sends the whole chat each time."""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

from deltamem.chat.tokens import Message

FORGOTTEN = "-"
# Hexadecimal digits of a message's digest. An entry of `seen` is the digest of the message before it in its chat, and its own.
DIGITS = 16
NO_MESSAGE = "0" * DIGITS


@dataclass(frozen=True)
class Seen:
    """The messages written to a memory, in order, as keyed digests: without a journal, no words are kept.

    Each entry names the message and the one before it. So a chat is recognised when others were written in between, when its
    client drops the oldest messages, and up to the message at which it branches off. The same text in another place is another
    message.

    Args:
        salt: the key of the digests, one for each memory.
        entries: see `DIGITS`; one that starts with `FORGOTTEN` is of a message that was forgotten.
    """

    salt: bytes
    entries: tuple[str, ...] = ()

    def places(self, messages: Sequence[Message]) -> list[int]:
        """The places in `entries` of the first messages, as far as they were written; messages exclude the system prompt."""
        links = {entry.removeprefix(FORGOTTEN): place for place, entry in enumerate(self.entries)}
        alone = {link[DIGITS:]: place for link, place in links.items()}
        found: list[int] = []
        before = NO_MESSAGE
        for message in messages:
            digest = self._digest(message)
            place = links.get(before + digest)
            if place is None and not found:  # the client may have dropped the messages before it
                place = alone.get(digest)
            if place is None:
                return found
            found.append(place)
            before = digest
        return found

    def is_forgotten(self, place: int) -> bool:
        """Whether the message of an entry was forgotten."""
        return self.entries[place].startswith(FORGOTTEN)

    def with_written(self, before: Sequence[Message], new: Sequence[Message]) -> Seen:
        """Add messages that were written after others of their chat."""
        digests = [NO_MESSAGE, *map(self._digest, (*before[-1:], *new))][-len(new) - 1 :] if new else []
        added = [first + second for first, second in pairwise(digests)]
        return Seen(self.salt, (*self.entries, *added))

    def without(self, places: Collection[int]) -> Seen:
        """Mark entries as forgotten."""
        marked = (
            FORGOTTEN + entry.removeprefix(FORGOTTEN) if place in places else entry for place, entry in enumerate(self.entries)
        )
        return Seen(self.salt, tuple(marked))

    def _digest(self, message: Message) -> str:
        text = json.dumps([message["role"], message["content"]])
        return hmac.new(self.salt, text.encode(), sha256).hexdigest()[:DIGITS]

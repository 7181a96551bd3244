"""Conversation: the session in a terminal, with its name, and its memory on or off."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from deltamem.chat.session import ChatSession
from deltamem.chat.store import SessionStore
from deltamem.chat.terminal.bare import BareChat


class Conversation:
    """The current session of a store. Once it has a name, it is saved after every change.

    Args:
        store: the store of the saved sessions.
        generation: options for `generate`.

    Attributes:
        session: the current session; a new one at first.
        name: the name under which it is saved; None if it is not.
        bare: the chat that answers while the memory is off; None while it is on.
    """

    session: ChatSession
    name: str | None

    def __init__(self, store: SessionStore, generation: Mapping[str, Any]) -> None:
        self.store = store
        self.generation = generation
        self.bare: BareChat | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a new session without a name; a saved one is not changed."""
        self._show(self.store.new(), None)

    def stream(self, text: str) -> Generator[str, None, None]:
        """Answer a message piece by piece; a stream that is closed before its end leaves everything as it was."""
        if self.bare is not None:
            yield from self.bare.stream(text, **self.generation)
            return
        before = self.session.messages
        try:
            yield from self.session.stream(text, **self.generation)
        finally:  # also if the reader left after the turn was complete
            if self.session.messages is not before:
                self._keep()

    def ask(self, text: str) -> Generator[str, None, None]:
        """Answer a question piece by piece; the session stays as it was.

        Raises:
            ValueError: the memory is off.
        """
        if self.bare is not None:
            raise ValueError("/ask reads the memory, which is off; /on switches it on again")
        return self.session.stream(text, keep=False, **self.generation)

    @property
    def turns(self) -> int:
        """The number of messages in the context of the next answer."""
        return len((self.session if self.bare is None else self.bare).messages)

    def observe(self, text: str) -> None:
        """Write a text to the memory without keeping it in the context."""
        self.session.observe(text)
        self._keep()

    def forget_context(self) -> None:
        """Drop the messages; the memory stays."""
        self.session.forget_context()
        self._show(self.session, self.name)
        self._keep()

    def save(self, name: str) -> None:
        """Save the session under a name, which it keeps.

        Raises:
            ValueError: the name is not accepted, or belongs to another session.
        """
        self.store.save(name, self.session)
        self.name = name

    def load(self, name: str) -> None:
        """Continue a saved session.

        Raises:
            ValueError: there is no such session, or it is damaged or belongs to another adapter.
        """
        known = self.store.names()
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there is none"
            raise ValueError(f"no session {name!r} in {str(self.store.root)!r}; {there}")
        self._show(self.store.open(name), name)

    def switch_off(self) -> None:
        """Let the backbone alone answer, from the current context; its turns are dropped when the memory is on again."""
        self.bare = BareChat(self.session)

    def switch_on(self) -> None:
        """Continue with the memory where it was switched off."""
        self.bare = None

    def _show(self, session: ChatSession, name: str | None) -> None:
        self.session, self.name = session, name
        if self.bare is not None:  # branch from the session's current context
            self.switch_off()

    def _keep(self) -> None:
        if self.name is not None:
            self.store.save(self.name, self.session)

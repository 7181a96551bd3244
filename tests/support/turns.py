"""Turns for the engine, and what becomes of them."""

from __future__ import annotations

import queue
from typing import Any

from deltamem.serve.turn import Event, Failed, Finished, Piece, Sampling, Turn


class Watched:
    """A turn whose events can be read."""

    def __init__(self, messages: Any, memory: Any, *, known: int = 0, write: Any = "after", **options: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.pieces: list[Piece] = []
        sampling = options.pop("sampling", Sampling(max_tokens=options.pop("max_tokens", 8), temperature=0))
        self.turn = Turn(messages, known, memory, write, sampling, self.events.put, **options)

    def end(self, timeout: float = 60) -> Finished | Failed:
        """Wait for the end of the turn."""
        while isinstance(event := self.events.get(timeout=timeout), Piece):
            self.pieces.append(event)
        return event

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of the answer, if its log-probabilities were asked for."""
        return tuple(choice.token for piece in self.pieces for choice in piece.tokens)

    def finished(self) -> Finished:
        end = self.end()
        if isinstance(end, Failed):
            raise end.error
        return end


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}

"""Answer: a turn as a coroutine sees it. It runs to its end, even if its consumer leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from deltamem.serve.turn import CancelledTurnError, Event, Failed, Finished, Piece, Turn


class Answer:
    """The events of a turn, for one consumer.

    The turn runs in a task of its own: a client that disconnects while its memory is being saved must not interrupt that.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._turn: Turn | None = None
        self._left = False

    def put(self, event: Event) -> None:
        """Add an event, in any thread."""
        with suppress(RuntimeError):  # the server was stopped, and nobody waits for the event
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def begin(self, turn: Turn) -> None:
        """Connect the answer with the engine's turn.

        Raises:
            CancelledTurnError: the consumer has left.
        """
        if self._left:
            raise CancelledTurnError("the client left before its turn began")
        self._turn = turn

    def leave(self) -> None:
        """Cancel the turn, unless it is complete already."""
        self._left = True
        if self._turn is not None:
            self._turn.cancel()

    async def end(self) -> Finished:
        """Wait for the end of the turn.

        Raises:
            Exception: what the turn failed with.
        """
        async for event in self.pieces():
            if isinstance(event, Finished):
                return event
        raise RuntimeError("the turn has no end")

    async def pieces(self) -> AsyncIterator[Piece | Finished]:
        """The events, of which the last one is the end.

        Raises:
            Exception: what the turn failed with.
        """
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, Failed):
                    raise event.error
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.leave()

"""TurnThread: a turn in a thread of its own, for streams and coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from transformers import TextIteratorStreamer

from deltamem.chat.answer import Stop


class TurnThread:
    """Runs a turn, which ends early once `stop` is set.

    A separate thread also keeps the open memory scope away from the consumer's code between two pieces. It is not a daemon, so
    that the interpreter waits for the next token at exit, and does not kill the thread inside a kernel.

    Args:
        turn: runs the turn, and returns the answer.
        streamer: is ended after an error, so that its consumer does not wait for ever; None if there is none.
    """

    def __init__(self, turn: Callable[[Stop], str], streamer: TextIteratorStreamer | None) -> None:
        self.stop = Stop()
        self._turn, self._streamer = turn, streamer
        self._answer = ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=False)

    def start(self) -> None:
        """Begin the turn."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the turn; an interrupt may have come before it began."""
        if self._thread.ident is not None:
            self._thread.join()

    async def ended(self) -> None:
        """Wait for the end of the turn, and let other coroutines run."""
        await asyncio.to_thread(self.join)

    def result(self) -> str:
        """The answer.

        Raises:
            BaseException: what the turn failed with.
        """
        if self._error is not None:
            raise self._error
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._turn(self.stop)
        except BaseException as error:  # raised in the consumer's thread by `result`
            self._error = error
            if self._streamer is not None:
                self._streamer.end()

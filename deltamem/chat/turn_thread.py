"""TurnThread: a turn in a thread of its own, for streams and coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from transformers import TextIteratorStreamer

from deltamem.chat.answer import Stop


class TurnThread:
    """Runs a turn for the length of a `with` block. If the block ends in an error, the turn ends at its next token.

    A separate thread also keeps the open memory scope away from the consumer's code between two pieces. It is not a daemon, so
    that the interpreter waits for the next token at exit, and does not kill the thread inside a kernel.

    Args:
        turn: runs the turn, and returns the answer.
        streamer: is ended after an error, so that its consumer does not wait for ever; None if there is none.
    """

    def __init__(self, turn: Callable[[Stop], str], streamer: TextIteratorStreamer | None) -> None:
        self._stop = Stop()
        self._turn, self._streamer = turn, streamer
        self._answer = ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=False)

    def __enter__(self) -> TurnThread:
        try:
            self._thread.start()
        except BaseException:  # an interrupt, before or after the turn began
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._thread.join()
        else:
            self._end()

    async def ended(self) -> None:
        """Wait for the end of the turn, and let other coroutines run."""
        await asyncio.to_thread(self._thread.join)

    def result(self) -> str:
        """The answer.

        Raises:
            BaseException: what the turn failed with.
        """
        if self._error is not None:
            raise self._error
        return self._answer

    def _end(self) -> None:
        """End the turn at its next token."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._answer = self._turn(self._stop)
        except BaseException as error:  # raised in the consumer's thread by `result`
            self._error = error
            if self._streamer is not None:
                self._streamer.end()

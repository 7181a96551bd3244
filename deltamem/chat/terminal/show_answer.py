"""Prints an answer while it is generated, until it ends or a signal interrupts it."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

from rich.console import Console

from deltamem.io.printable import printable

# The signals that end the chat: a closed terminal, a shutdown. Windows has no SIGHUP.
ENDINGS = [getattr(signal, name) for name in ("SIGHUP", "SIGTERM") if hasattr(signal, name)]


def show_answer(pieces: Generator[str, None, None], console: Console) -> None:
    """Print the pieces of an answer until it ends, or until Ctrl-C closes it."""
    with _signals_kept() as signals, closing(pieces):
        for piece in pieces:
            console.out(printable(piece), end="")
            if signals:
                break
    console.print()


@contextmanager
def _signals_kept() -> Iterator[list[int]]:
    """While an answer is generated, only record signals: an exception could interrupt the undoing of a turn.

    Signals that end the chat are raised again afterwards.
    """
    noted: list[int] = []
    before = {number: signal.signal(number, lambda given, frame: noted.append(given)) for number in (signal.SIGINT, *ENDINGS)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in noted:
            if number in ENDINGS:
                signal.raise_signal(number)

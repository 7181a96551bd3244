"""The loop of a terminal chat: reads lines, prints answers, and handles Ctrl-C and signals."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from deltamem.chat.terminal.conversation import Conversation
from deltamem.chat.terminal.slash_commands import run_command
from deltamem.io.printable import printable

# The signals that end the chat: a closed terminal, a shutdown. Windows has no SIGHUP.
ENDINGS = [getattr(signal, name) for name in ("SIGHUP", "SIGTERM") if hasattr(signal, name)]


def talk(conversation: Conversation, console: Console) -> None:
    """Read lines and answer them until the input ends."""
    with suppress(ImportError):  # gives input() line editing and a history; not available on Windows
        importlib.import_module("readline")
    broken_off = False
    while True:
        prompt = "\n" * broken_off + _prompt(conversation)
        try:
            broken_off = False
            _handle(input(prompt).strip(), conversation, console)
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:  # drop the typed line or the running command
            broken_off = True
        except (ValueError, OSError, RuntimeError, ArithmeticError) as error:  # the session is unchanged
            console.print(f"[red]{escape(printable(str(error)))}[/]")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Exit cleanly when the terminal is closed: an answer is interrupted, a save is completed or undone."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for ending in ENDINGS:  # a second signal must not interrupt the exit
            signal.signal(ending, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {ending: signal.signal(ending, end) for ending in ENDINGS}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)


def _prompt(conversation: Conversation) -> str:
    off = "" if conversation.bare is None else "(memory off)"
    return " ".join(filter(None, (conversation.name, off))) + "> "


def _handle(line: str, conversation: Conversation, console: Console) -> None:
    if line.startswith("/"):
        run_command(line, conversation, console)
    elif line:
        _answer(line, conversation, console)


def _answer(text: str, conversation: Conversation, console: Console) -> None:
    turns = conversation.turns
    with _signals_kept() as signals, closing(conversation.stream(text)) as pieces:
        for piece in pieces:
            console.out(printable(piece), end="")
            if signals:
                break
    console.print()
    if conversation.turns == turns:
        console.print("[dim](stopped; nothing of this turn is kept)[/]")


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

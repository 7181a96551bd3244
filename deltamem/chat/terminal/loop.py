"""The loop of a terminal chat: reads lines, prints answers, and handles Ctrl-C and signals."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from deltamem.chat.terminal.conversation import Conversation
from deltamem.chat.terminal.show_answer import ENDINGS, show_answer
from deltamem.chat.terminal.slash_commands import run_command
from deltamem.io.printable import printable


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
    show_answer(conversation.stream(text), console)
    if conversation.turns == turns:
        console.print("[dim](stopped; nothing of this turn is kept)[/]")

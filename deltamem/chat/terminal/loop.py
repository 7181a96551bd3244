"""The terminal: lines in, answers out, and what the keys and the signals of a terminal do."""

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
    with suppress(ImportError):  # a line editor with a history, which input() then uses; not on Windows
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
        except KeyboardInterrupt:  # the line that was typed, or the command that ran, is dropped
            broken_off = True
        except (ValueError, OSError, RuntimeError, ArithmeticError) as error:  # the session is as it was before
            console.print(f"[red]{escape(printable(str(error)))}[/]")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Leave in an orderly way when the terminal is closed: an answer is broken off, a save is completed or undone."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for ending in ENDINGS:  # a second one must not disturb the way out
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

"""The commands of a terminal chat: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deltamem.chat.terminal.conversation import Conversation
from deltamem.chat.terminal.heat_map import picture
from deltamem.chat.terminal.show_answer import show_answer
from deltamem.io.files import check_regular
from deltamem.io.printable import printable


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        help: a description of one line.
        run: the function, called with the conversation, the console and the argument ("" if there is none).
        argument: the name of the required argument; "" if the command takes none.
    """

    help: str
    run: Callable[[Conversation, Console, str], None]
    argument: str = ""


def run_command(line: str, conversation: Conversation, console: Console) -> None:
    """Run a line that begins with a slash.

    Raises:
        EOFError: the command was /exit.
        ValueError, OSError: the command is unknown or failed; the message says why.
    """
    name, _, argument = line.removeprefix("/").partition(" ")
    argument = argument.strip()
    command = COMMANDS.get(name)
    if command is None:
        raise ValueError(f"there is no command /{name}; there are {', '.join(f'/{known}' for known in COMMANDS)}")
    if bool(argument) != bool(command.argument):
        given = f"needs a {command.argument}" if command.argument else f"takes no argument, got {argument!r}"
        raise ValueError(f"/{name} {given}")
    command.run(conversation, console, argument)


def _help(conversation: Conversation, console: Console, argument: str) -> None:
    table = Table.grid(padding=(0, 2))
    for name, command in COMMANDS.items():
        table.add_row(f"/{name} {command.argument}", command.help)
    console.print(table)
    console.print("Any other line goes to the model. Ctrl-C stops an answer, Ctrl-D exits.")


def _observe(conversation: Conversation, console: Console, file: str) -> None:
    path = Path(file).expanduser()
    check_regular(path)
    _remember(conversation, console, path.read_text(encoding="utf-8"))


def _remember(conversation: Conversation, console: Console, text: str) -> None:
    before = conversation.session.memory.tokens[0]
    with console.status("reading"):
        conversation.observe(text)
    console.print(f"{conversation.session.memory.tokens[0] - before:,} tokens written to the memory.")


def _ask(conversation: Conversation, console: Console, question: str) -> None:
    show_answer(conversation.ask(question), console)


def _forget(conversation: Conversation, console: Console, argument: str) -> None:
    dropped = len(conversation.session.messages)
    conversation.forget_context()
    console.print(f"{dropped} messages dropped; the memory of {conversation.session.memory.tokens[0]:,} tokens stays.")


def _memory(conversation: Conversation, console: Console, argument: str) -> None:
    console.print(picture(conversation.session.memory, colours=console.color_system is not None))


def _save(conversation: Conversation, console: Console, name: str) -> None:
    conversation.save(name)
    folder = escape(printable(str(conversation.store.root / name)))
    console.print(f"Saved in {folder}; it will be saved there after every turn.")


def _load(conversation: Conversation, console: Console, name: str) -> None:
    conversation.load(name)
    session = conversation.session
    console.print(
        f"Continuing {name}: {session.memory.tokens[0]:,} tokens in its memory, {len(session.messages)} messages in its "
        "context. It is saved after every turn.",
    )


def _off(conversation: Conversation, console: Console, argument: str) -> None:
    conversation.switch_off()
    console.print(
        f"The backbone alone answers, from the {len(conversation.session.messages)} messages in the context. /on drops the "
        "turns until then."
    )


def _on(conversation: Conversation, console: Console, argument: str) -> None:
    conversation.switch_on()
    console.print("The memory is on.")


def _reset(conversation: Conversation, console: Console, argument: str) -> None:
    conversation.reset()
    console.print("A new session: an empty memory, an empty context, no name.")


def _exit(conversation: Conversation, console: Console, argument: str) -> None:
    raise EOFError


COMMANDS = {
    "observe": Command("write a text file to the memory without keeping it in the context", _observe, "FILE"),
    "remember": Command("write this to the memory without keeping it in the context", _remember, "TEXT"),
    "ask": Command("answer from the memory and the context, without keeping the turn", _ask, "QUESTION"),
    "forget": Command("drop the context; the memory stays", _forget),
    "memory": Command("show the memory", _memory),
    "save": Command("save this session under a name, and again after every turn", _save, "NAME"),
    "load": Command("continue a saved session", _load, "NAME"),
    "off": Command("let the backbone alone answer, without reading or writing the memory", _off),
    "on": Command("switch the memory on again", _on),
    "reset": Command("begin a new session; a saved one is not changed", _reset),
    "help": Command("show this list", _help),
    "exit": Command("exit", _exit),
}

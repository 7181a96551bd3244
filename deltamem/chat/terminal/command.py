"""`deltamem chat`: loads a model with its adapter and talks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from deltamem.backbones import SHIPPED_SYSTEM, Placement, load_adapted
from deltamem.chat.store import SessionStore
from deltamem.chat.terminal.conversation import Conversation
from deltamem.chat.terminal.loop import ended_by_signals, talk
from deltamem.io.printable import printable


def run(
    model: str | None,
    adapter: str | None,
    sessions: Path,
    system: str | None,
    max_new_tokens: int,
    temperature: float | None,
    placement: Placement,
) -> None:
    """Talk until the input ends.

    Args:
        model: the backbone, a folder or a Hub name; the adapter's own if None.
        adapter: the adapter, likewise; the shipped one if None.
        sessions: the folder of the saved sessions.
        system: the system prompt; that of the shipped adapter's training if None, for others the chat template's own.
        max_new_tokens: of an answer.
        temperature: of the sampling, 0 for the likeliest token every time; the model's own generation options if None.
        placement: where the backbone runs.

    Raises:
        ValueError, OSError: the model, the adapter or an option is not accepted; says why.
    """
    if adapter is None and system is None:
        system = SHIPPED_SYSTEM
    adapted, tokenizer = load_adapted(adapter, model, placement)
    store = SessionStore(sessions, adapted, tokenizer, system)
    conversation = Conversation(store, {"max_new_tokens": max_new_tokens, **_sampling(temperature)})
    console = Console(highlight=False)
    name, size = adapted.get_base_model().name_or_path, conversation.session.memory.nbytes
    console.print(f"{escape(printable(name))} with a memory of {size:,} bytes. /help lists the commands.")
    with ended_by_signals():
        talk(conversation, console)


def _sampling(temperature: float | None) -> dict[str, Any]:
    if temperature is None:
        return {}
    if temperature == 0:  # the others are only for sampling, and a model's own would be warned of
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature}

"""`deltamem chat`: loads a model with its adapter and starts the conversation."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from deltamem.backbones import Placement, load_adapted, shipped_adapter
from deltamem.chat.store import SessionStore
from deltamem.chat.terminal.conversation import Conversation
from deltamem.chat.terminal.loop import ended_by_signals, talk
from deltamem.hub.training_record import trained_on_facts_alone
from deltamem.io.printable import printable

ONLY_FACTS = (
    "This adapter was trained on generated facts alone, not on dialogue: it recalls short facts, and its other answers are "
    "worse than the backbone's. /off lets the backbone answer."
)


def run(
    model: str | None,
    adapter: str | None,
    sessions: Path,
    system: str | None,
    max_new_tokens: int,
    temperature: float | None,
    placement: Placement,
    memory_on: bool = True,
) -> None:
    """Chat until the input ends.

    Args:
        model: the backbone, a folder or a name on the Hub; the adapter's backbone if None.
        adapter: the adapter, a folder or a name on the Hub; the shipped one if None.
        sessions: the folder of the saved sessions.
        system: the system prompt; the template's default if None.
        max_new_tokens: the maximum length of an answer.
        temperature: the sampling temperature, 0 for greedy decoding; the model's generation options if None.
        placement: the backbone's device and dtype.
        memory_on: whether the chat begins with the memory on.

    Raises:
        ValueError, OSError: the model, the adapter or an option is not accepted; the message says why.
    """
    with shipped_adapter() if adapter is None else nullcontext(adapter) as folder:
        adapted, tokenizer = load_adapted(folder, model, placement)
        only_facts = trained_on_facts_alone(folder)
    store = SessionStore(sessions, adapted, tokenizer, system)
    conversation = Conversation(store, {"max_new_tokens": max_new_tokens, **_sampling(temperature)})
    console = Console(highlight=False)
    name, size = adapted.get_base_model().name_or_path, conversation.session.memory.nbytes
    console.print(f"{escape(printable(name))} with a memory of {size:,} bytes. /help lists the commands.")
    if not memory_on:
        conversation.switch_off()
    elif only_facts:
        console.print(ONLY_FACTS)
    with ended_by_signals():
        talk(conversation, console)


def _sampling(temperature: float | None) -> dict[str, Any]:
    if temperature is None:
        return {}
    if temperature == 0:  # unset the model's sampling options, or transformers would warn
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature}

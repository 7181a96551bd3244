"""`deltamem chat`: loads a model with its adapter and talks."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.markup import escape

from deltamem.adapter.files import backbone_of, read_config
from deltamem.backbones import load_backbone
from deltamem.chat.store import SessionStore
from deltamem.chat.terminal.conversation import Conversation
from deltamem.chat.terminal.loop import ended_by_signals, talk
from deltamem.demo import SHIPPED_ADAPTER, SYSTEM
from deltamem.io.printable import printable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(
    model: str | None,
    adapter: str | None,
    sessions: Path,
    system: str | None,
    max_new_tokens: int,
    temperature: float | None,
    dtype: str,
    device: str,
) -> None:
    """Talk until the input ends.

    Args:
        model: the backbone, a folder or a Hub name; the adapter's own if None.
        adapter: the adapter, likewise; the shipped one if None.
        sessions: the folder of the saved sessions.
        system: the system prompt; that of the shipped adapter's training if None, for others the chat template's own.
        max_new_tokens: of an answer.
        temperature: of the sampling, 0 for the likeliest token every time; the model's own generation options if None.
        dtype: of the backbone.
        device: where it runs.

    Raises:
        ValueError, OSError: the model, the adapter or an option is not accepted; says why.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype!r} is not accepted; choose one of {', '.join(DTYPES)}")
    if adapter is None and system is None:
        system = SYSTEM
    adapted, tokenizer = _load(model, adapter, DTYPES[dtype], device)
    store = SessionStore(sessions, adapted, tokenizer, system)
    conversation = Conversation(store, {"max_new_tokens": max_new_tokens, **_sampling(temperature)})
    console = Console(highlight=False)
    name, size = adapted.get_base_model().name_or_path, conversation.session.memory.nbytes
    console.print(f"{escape(printable(name))} with a memory of {size:,} bytes. /help lists the commands.")
    with ended_by_signals():
        talk(conversation, console)


def _load(model: str | None, adapter: str | None, dtype: torch.dtype, device: str) -> tuple[PeftModel, Any]:
    with as_file(files("deltamem.adapters") / SHIPPED_ADAPTER) as shipped:
        folder = adapter or os.fspath(shipped)
        read_config(folder)  # refuses an adapter of another method
        backbone, tokenizer = load_backbone(model or backbone_of(folder), dtype)
        return PeftModel.from_pretrained(_moved(backbone, device), folder).eval(), tokenizer


def _moved(backbone: Any, device: str) -> Any:
    try:
        return backbone.to(device)
    except (RuntimeError, AssertionError) as error:  # torch's, for a name that means nothing or a device that is not here
        raise ValueError(f"--device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _sampling(temperature: float | None) -> dict[str, Any]:
    if temperature is None:
        return {}
    if temperature == 0:  # the others are only for sampling, and a model's own would be warned of
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature}

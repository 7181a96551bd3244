"""A process that saves a session again and again, to be killed. A module of its own, for the process to import."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_chat import chat_model, chat_tokenizer

from deltamem import ChatSession


@cache
def parts() -> tuple[Any, Any]:
    return chat_model(), chat_tokenizer()


def numbered(chat: ChatSession, number: int) -> ChatSession:
    """The session with a number in all its parts, so that a mixture of two would show."""
    chat.memory.snapshot = chat.memory.snapshot.map(lambda tensor: torch.full_like(tensor, number))
    chat.messages = [{"role": "user", "content": str(number)}]
    return chat


def number_in(folder: Path) -> int:
    """Load a session and read its number, the same in all parts."""
    chat = ChatSession.load(folder, *parts())
    (number,) = chat.memory.tokens
    assert chat.messages == [{"role": "user", "content": str(number)}]
    assert all((tensor == number).all() for tensor in chat.memory.tensors.values())
    return number


def save_forever(folder: Path) -> None:
    chat, number = ChatSession.load(folder, *parts()), number_in(folder)
    while True:
        number += 1
        numbered(chat, number).save(folder)

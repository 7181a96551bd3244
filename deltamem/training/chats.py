"""Chats to train on: a system prompt, a history, and perhaps questions at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltamem.chat.tokens import Message, system_prompt
from deltamem.training.given import Given

Chat = dict[str, Any]
MOST_TURNS = range(1, 1_000_001)


def read_chats(records: Sequence[Given]) -> list[Chat]:
    """Records as chats, `{"messages": [{"role": ..., "content": ...}, ...]}`, perhaps with their "read_turns".

    Raises:
        ValueError: a record that is something else, with its place.
    """
    return [_chat(record) for record in records]


def read_episodes(records: Sequence[Given]) -> list[Chat]:
    """As `read_chats`, but for chats to train on: a history, then questions, each with its answer.

    Raises:
        ValueError: a record that is something else, with its place.
    """
    return [_checked(record, lambda chat: parts_of(chat["messages"], chat.get("read_turns", 1))) for record in records]


def read_talk(records: Sequence[Given]) -> list[Chat]:
    """As `read_chats`, but for talk to train on: chats that can be read on from any of their messages, marked as `"talk"`.

    Raises:
        ValueError: a record that is something else, with its place.
    """
    return [{**_checked(record, lambda chat: split_system(chat["messages"])), "talk": True} for record in records]


def with_questions(chat: Chat) -> Chat:
    """A talk as a chat whose last turns are asked, two where it has more than two: for figures that compare memories."""
    if not chat.get("talk"):
        return chat
    system, talk = split_system(chat["messages"])
    turns = len(talk) // 2
    return {"messages": [*system, *talk[: 2 * turns]], "read_turns": min(2, turns - 1)}


def history(chat: Chat) -> Sequence[Message]:
    """All messages before the questions."""
    messages: Sequence[Message] = chat["messages"]
    return messages[: len(messages) - 2 * chat.get("read_turns", 1)]


def parts_of(messages: Sequence[Message], read_turns: int) -> tuple[list[Message], list[Message], list[Message]]:
    """The system prompt if there is one, the history, and the questions of a chat, each with its answer.

    Raises:
        ValueError: no history, or no questions and answers at the end.
    """
    system = system_prompt(messages)
    split = len(messages) - 2 * read_turns
    told, turns = [*messages[len(system) : max(split, 0)]], [*messages[max(split, 0) :]]
    roles = [message["role"] for message in turns]
    if not told or read_turns < 1 or roles != ["user", "assistant"] * read_turns:
        raise ValueError(
            f"an episode needs a history, then {read_turns} questions of a user, each with its answer; got the roles: "
            + ", ".join(message["role"] for message in messages)
        )
    return system, told, turns


def split_system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system prompt if there is one, and the messages of a talk.

    Raises:
        ValueError: fewer than two of them.
    """
    system = system_prompt(messages)
    talk = [*messages[len(system) :]]
    if len(talk) < 2:
        raise ValueError(f"talk needs two messages at least, one to remember and one to read, got {len(talk)}")
    return system, talk


def _checked(record: Given, check: Any) -> Chat:
    chat = _chat(record)
    try:
        check(chat)
    except ValueError as error:
        raise ValueError(f"{record.place}: {error}") from error
    return chat


def _chat(record: Given) -> Chat:
    messages = [
        {"role": message["role"].text(), "content": message["content"].text(empty=True)}
        for message in record["messages"].items()
    ]
    turns = record["read_turns"]
    return {"messages": messages, **({"read_turns": turns.number(MOST_TURNS)} if turns.is_given else {})}

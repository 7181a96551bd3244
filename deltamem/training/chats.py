"""Chats to train on: a system prompt, a history, and optionally questions at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deltamem.chat.tokens import Message, system_prompt
from deltamem.training.given import Given

Chat = dict[str, Any]
MOST_TURNS = range(1, 1_000_001)


def read_chats(records: Iterable[Given]) -> list[Chat]:
    """Parse records into chats, `{"messages": [{"role": ..., "content": ...}, ...]}`, with "read_turns" where given.

    The "place" of each, such as "chats.jsonl, line 7", is for error messages.

    Raises:
        ValueError: a record is malformed; the message names it.
    """
    return [_chat(record) for record in records]


def read_episodes(records: Iterable[Given]) -> list[Chat]:
    """Parse records as `read_chats` does, and check that each chat is a history followed by questions with answers.

    Raises:
        ValueError: a record is malformed; the message names it.
    """
    return [_checked(record, lambda chat: parts_of(chat["messages"], chat.get("read_turns", 1))) for record in records]


def read_talk(records: Iterable[Given]) -> list[Chat]:
    """Parse records as `read_chats` does, into talk (marked `"talk"`): chats that can be continued from any message.

    Raises:
        ValueError: a record is malformed; the message names it.
    """
    return [{**_checked(record, lambda chat: split_system(chat["messages"])), "talk": True} for record in records]


def with_questions(chat: Chat) -> Chat:
    """Turn talk into a chat whose last turns (at most two) are its questions, so that memories can be compared on it."""
    if not chat.get("talk"):
        return chat
    system, talk = split_system(chat["messages"])
    turns = len(talk) // 2
    return {"messages": [*system, *talk[: 2 * turns]], "read_turns": min(2, turns - 1)}


def history(chat: Chat) -> Sequence[Message]:
    """The messages before the questions."""
    messages: Sequence[Message] = chat["messages"]
    return messages[: len(messages) - 2 * chat.get("read_turns", 1)]


def parts_of(messages: Sequence[Message], read_turns: int) -> tuple[list[Message], list[Message], list[Message]]:
    """Split a chat into its system prompt (if any), its history, and its questions with their answers.

    Raises:
        ValueError: there is no history, or the chat does not end with questions and answers.
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
    """Split talk into its system prompt (if any) and its other messages.

    Raises:
        ValueError: there are fewer than two other messages.
    """
    system = system_prompt(messages)
    talk = [*messages[len(system) :]]
    if len(talk) < 2:
        raise ValueError(f"talk needs two messages at least, one to remember and one to read, got {len(talk)}")
    return system, talk


@contextmanager
def naming(chat: Chat) -> Iterator[None]:
    """Put a chat's place, if it has one, before the message of an error about it.

    Raises:
        ValueError: the block raises one.
    """
    try:
        yield
    except ValueError as error:
        if "place" not in chat:
            raise
        raise ValueError(f"{chat['place']}: {error}") from error


def _checked(record: Given, check: Any) -> Chat:
    chat = _chat(record)
    with naming(chat):
        check(chat)
    return chat


def _chat(record: Given) -> Chat:
    messages = [
        {"role": message["role"].text(), "content": message["content"].text(empty=True)}
        for message in record["messages"].items()
    ]
    turns = record["read_turns"]
    read_turns = {"read_turns": turns.number(MOST_TURNS)} if turns.is_given else {}
    return {"messages": messages, **read_turns, "place": record.place}

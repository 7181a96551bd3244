"""Locates the messages in a rendered chat by position, whatever their text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, product

Render = Callable[[Sequence[Mapping[str, str]]], str]
Place = tuple[int, int]

# The first of the characters that mark the messages, in a plane that Unicode reserves for private use.
FIRST_MARK = 0xF0000
VISIBLE = re.compile(r"\S")
# Some templates look for tags in a message, for example to remove the reasoning from an earlier answer.
BUT_FOR_TAGS = re.compile(r"(<[^<>]*>)|\S")


def message_places(render: Render, messages: Sequence[Mapping[str, str]], text: str) -> list[Place | None]:
    """The start and end of each message in a rendered chat, without surrounding white space.

    The chat is rendered again, with all characters of a message replaced by the message's mark. If the rest of the result is
    the same, the marks are where the message is.

    Args:
        render: the chat template.
        messages: the chat.
        text: the rendered chat.

    Returns:
        A place for each message; None for messages that were not found, and for system prompts.
    """
    for visible, mark_empty in product((VISIBLE, BUT_FOR_TAGS), (True, False)):
        marked = render([_marked(message, number, visible, mark_empty) for number, message in enumerate(messages)])
        places = _places(marked, text, {number for number, message in enumerate(messages) if not message["content"].strip()})
        if places is not None:
            return [places.get(number) for number in range(len(messages))]
    return [None] * len(messages)


def _marked(message: Mapping[str, str], number: int, visible: re.Pattern[str], mark_empty: bool) -> Mapping[str, str]:
    """A message with its visible characters replaced by marks; an empty one gets a single mark, to be found as well."""
    content = message["content"]
    mark = chr(FIRST_MARK + number)
    if message["role"] == "system":
        return message
    if not content.strip():
        return {**message, "content": mark + content} if mark_empty else message
    return {**message, "content": visible.sub(lambda found: found.group(1) or mark if found.re.groups else mark, content)}


def _places(marked: str, text: str, empty: Iterable[int]) -> dict[int, Place] | None:
    """The places of the marks by message; None if the marked text differs from the other in more than the marks."""
    places: dict[int, Place] = {}
    kept: list[str] = []
    for character in marked:
        number = ord(character) - FIRST_MARK
        if number >= 0:
            start, _ = places.get(number, (len(kept), 0))
            places[number] = start, len(kept) + (number not in empty)
            if number in empty:  # the mark replaces no character
                continue
        kept.append(character)
    if len(kept) != len(text) or any(one != other and ord(one) < FIRST_MARK for one, other in zip(kept, text, strict=True)):
        return None
    spans = [places[number] for number in sorted(places)]
    in_order = all(end <= start for (_, end), (start, _) in pairwise(spans))
    return places if in_order else None

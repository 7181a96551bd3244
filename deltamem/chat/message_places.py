"""Where a rendered chat has its messages: by position, whatever their text is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, product

Render = Callable[[Sequence[Mapping[str, str]]], str]
Place = tuple[int, int]

# The first of the characters that stand for the messages: of a plane that Unicode leaves to private use.
FIRST_MARK = 0xF0000
VISIBLE = re.compile(r"\S")
# Some templates look for tags in a message, to cut an earlier answer's reasoning out, for one.
BUT_FOR_TAGS = re.compile(r"(<[^<>]*>)|\S")


def message_places(render: Render, messages: Sequence[Mapping[str, str]], text: str) -> list[Place | None]:
    """Start and end in a rendered chat of what it has of each message, without white space around it.

    The chat is rendered once more, with each message's characters replaced by one that stands for this message. All else
    must come out as it did; then the marks stand where the message does.

    Args:
        render: the chat template.
        messages: the chat.
        text: the chat as rendered.

    Returns:
        A place for each message; None for those that are not found, and for system prompts.
    """
    for visible, mark_empty in product((VISIBLE, BUT_FOR_TAGS), (True, False)):
        marked = render([_marked(message, number, visible, mark_empty) for number, message in enumerate(messages)])
        places = _places(marked, text, {number for number, message in enumerate(messages) if not message["content"].strip()})
        if places is not None:
            return [places.get(number) for number in range(len(messages))]
    return [None] * len(messages)


def _marked(message: Mapping[str, str], number: int, visible: re.Pattern[str], mark_empty: bool) -> Mapping[str, str]:
    """A message with the same outline, of marks; an empty one gets a single mark, so that it can be found as well."""
    content = message["content"]
    mark = chr(FIRST_MARK + number)
    if message["role"] == "system":
        return message
    if not content.strip():
        return {**message, "content": mark + content} if mark_empty else message
    return {**message, "content": visible.sub(lambda found: found.group(1) or mark if found.re.groups else mark, content)}


def _places(marked: str, text: str, empty: Iterable[int]) -> dict[int, Place] | None:
    """The places of the marks by message, None unless the marked text is the other but for them."""
    places: dict[int, Place] = {}
    kept: list[str] = []
    for character in marked:
        number = ord(character) - FIRST_MARK
        if number >= 0:
            start, _ = places.get(number, (len(kept), 0))
            places[number] = start, len(kept) + (number not in empty)
            if number in empty:  # it stands for nothing
                continue
        kept.append(character)
    if len(kept) != len(text) or any(one != other and ord(one) < FIRST_MARK for one, other in zip(kept, text, strict=True)):
        return None
    spans = [places[number] for number in sorted(places)]
    in_order = all(end <= start for (_, end), (start, _) in pairwise(spans))
    return places if in_order else None

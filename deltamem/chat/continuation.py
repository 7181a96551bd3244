"""Finds the new tokens of a rendered chat if the chat template renders earlier turns differently than before."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from deltamem.chat.message_places import Render, message_places
from deltamem.chat.tokens import Message, render


def new_from(tokenizer: Any, messages: Sequence[Message], known: int, template_options: Mapping[str, Any] | None = None) -> int:
    """The first token of a rendered chat that belongs to new messages, however the template renders the known ones now.

    The text between the last known message and the first new one belongs to the known message as far as it also follows that
    message when the chat ends there.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: the chat.
        known: the number of known messages, at least one; the last of them is not a system prompt.
        template_options: see `render`.

    Raises:
        ValueError: a message cannot be found in the rendered chat.
    """
    as_text = partial(render, tokenizer, template_options=template_options)
    before, gap = _behind(tokenizer, as_text, messages, known - 1)
    _, tail = _behind(tokenizer, as_text, messages[:known], known - 1)
    return before + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(gap, tail, strict=False)))


def _behind(tokenizer: Any, as_text: Render, messages: Sequence[Message], last: int) -> tuple[int, list[int]]:
    """The number of tokens up to the end of a message, and the ids of the tokens between it and the next message."""
    text = as_text(messages)
    places = message_places(as_text, messages, text)
    here, there = places[last], (*places[last + 1 :], None)[0]
    lost = [
        message["content"].strip()
        for message, place in zip(messages, places, strict=True)
        if place is None and message["role"] != "system" and message["content"].strip()
    ]
    if lost or here is None:
        raise ValueError(
            f"the chat template renders earlier turns otherwise than before, and the message {(*lost, '')[0][:40]!r} cannot be "
            "found in the result, so it is unknown which tokens are new; forget_context() continues without the messages so far"
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    first = bisect_left([start for start, _ in encoded["offset_mapping"]], here[1])
    after = len(text) if there is None else there[0]
    return first, encoded["input_ids"][first : bisect_right([end for _, end in encoded["offset_mapping"]], after)]

"""Chats as tokens: rendered by the tokenizer's own chat template, with the segments that SSW adapters write."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deltamem.chat.message_places import Place, message_places
from deltamem.chat.sentences import sentences
from deltamem.config import WriteUnit

Message = Mapping[str, str]

# What the assistant says to a user who tells something, in training and where a text is written without an answer.
ACKNOWLEDGEMENT = "Noted."
# What of a chat template is not an option: it is decided here.
DECIDED = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True)
class ChatTokens:
    """A rendered chat.

    Args:
        ids: `[tokens]`.
        segment_ids: `[tokens]`, the message or sentence a token belongs to, -1 for the template's own tokens and the system
            prompt; all -1 for adapters that write tokens.
    """

    ids: Tensor
    segment_ids: Tensor

    @classmethod
    def from_messages(
        cls,
        tokenizer: Any,
        messages: Sequence[Message],
        write: WriteUnit = "token",
        add_generation_prompt: bool = False,
        template_options: Mapping[str, Any] | None = None,
    ) -> ChatTokens:
        """Render and tokenise a chat; `write` says what its segments are.

        Raises:
            ValueError: the tokenizer has no chat template, or options that it does not take; a message that is to be a segment
                is not in what the template makes of it.
        """
        as_text = partial(render, tokenizer, add_generation_prompt=add_generation_prompt, template_options=template_options)
        text = as_text(messages)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=write != "token")
        ids = torch.tensor(encoded["input_ids"], dtype=torch.long, device="cpu")
        segment_ids = torch.full_like(ids, -1)
        if write != "token":
            spans = list(_segments(text, messages, message_places(as_text, messages, text), write))
            ends = [end for _, end in spans]
            for position, (start, end) in enumerate(encoded["offset_mapping"]):
                index = bisect_right(ends, start)  # the first segment that is not over yet
                if index < len(spans) and spans[index][0] < end:
                    segment_ids[position] = index
        return cls(ids, segment_ids)

    def slice(self, start: int, end: int) -> ChatTokens:
        """The tokens from `start` to before `end`."""
        return ChatTokens(self.ids[start:end], self.segment_ids[start:end])

    def last(self, tokens: int) -> ChatTokens:
        """The last tokens only."""
        return self.slice(max(len(self.ids) - tokens, 0), len(self.ids))

    def pieces(self, tokens: int) -> Iterator[ChatTokens]:
        """The chat in pieces of at most so many tokens."""
        return (self.slice(start, start + tokens) for start in range(0, len(self.ids), tokens))


def left_padded(rows: Sequence[Tensor], fill: int) -> Tensor:
    """Rows of different lengths as `[rows, tokens]`, filled up in front, so that they end together."""
    return pad_sequence(list(rows), batch_first=True, padding_value=fill, padding_side="left")


def right_padded(rows: Sequence[Tensor], fill: int) -> Tensor:
    """Rows of different lengths as `[rows, tokens]`, filled up behind, so that they begin together."""
    return pad_sequence(list(rows), batch_first=True, padding_value=fill)


def with_system(system: str | None, messages: Sequence[Message]) -> list[Message]:
    """The messages behind a system prompt; without one if it is None, which leaves it to the template."""
    return [*messages] if system is None else [{"role": "system", "content": system}, *messages]


def system_prompt(messages: Sequence[Message]) -> list[Message]:
    """The system prompt that a chat begins with, as the only message; nothing if it begins with none."""
    return [message for message in messages[:1] if message["role"] == "system"]


def told(text: str) -> list[Message]:
    """What a user tells, with the answer that every telling had in training."""
    return [{"role": "user", "content": text}, {"role": "assistant", "content": ACKNOWLEDGEMENT}]


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """The chat as text, by the tokenizer's own template.

    Args:
        tokenizer: it has a chat template.
        messages: the chat.
        add_generation_prompt: whether the header of an answer follows.
        template_options: what else the template takes, such as `{"enable_thinking": False}` or `{"tools": [...]}`.

    Raises:
        ValueError: the tokenizer has no chat template, or one that refuses the chat; an option is none of the template's.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("this tokenizer has no chat template; use the tokenizer of an instruction-tuned model, or set one")
    options = template_options or {}
    decided = [name for name in options if name in DECIDED]
    if decided:
        raise ValueError(
            f"{decided[0]} is no option of a chat template: it is decided for each rendering. Leave it out of template_options"
        )
    chosen = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return tokenizer.apply_chat_template(list(messages), **chosen, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the tokenizer's chat template refuses a chat of the roles {roles}: {error}; give a chat that the template takes, "
            "for instance without a system prompt, or set another template"
        ) from error


def check_messages(messages: Any) -> None:
    """Make sure that these are messages of a chat.

    Raises:
        ValueError: no list of `{"role": str, "content": str}`; says what was given.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f'a chat is a list of {{"role": ..., "content": ...}}, got {messages!r:.80}')
    for message in messages:
        parts = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f'a message is {{"role": text, "content": text}}, got {message!r:.80}')


def _segments(text: str, messages: Sequence[Message], places: Sequence[Place | None], write: WriteUnit) -> Iterator[Place]:
    """Start and end in the rendered text of every message, or sentence, that is written: all but the system prompt's."""
    for message, place in zip(messages, places, strict=True):
        if message["role"] == "system" or not message["content"].strip():
            continue
        if place is None:
            raise ValueError(
                f"the chat template does not render the message {message['content'].strip()[:40]!r} as it is, so its tokens "
                "cannot be found; set another template, or use an adapter that writes tokens"
            )
        start, end = place
        if write == "message":
            yield place
        else:
            yield from ((start + first, start + last) for first, last in sentences(text[start:end]))

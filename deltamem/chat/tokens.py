"""Chats as tokens: rendered by the tokenizer's chat template, with the segments that SSW adapters write."""

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

# The assistant's answer to a text that it is told, in training and in `ChatSession.observe`.
ACKNOWLEDGEMENT = "Noted."
# The arguments of a chat template that are set here, and so are not options.
DECIDED = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True)
class ChatTokens:
    """A rendered chat.

    Args:
        ids: `[tokens]`.
        segment_ids: `[tokens]`, the message or sentence of each token, -1 for the template's tokens and the system prompt; all
            -1 for adapters that write tokens.
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
        """Render and tokenise a chat; `write` is the unit of its segments.

        Raises:
            ValueError: the tokenizer has no chat template, an option is not accepted, or a message that must be a segment is
                not found in the rendered chat.
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
                index = bisect_right(ends, start)  # the first segment that has not ended yet
                if index < len(spans) and spans[index][0] < end:
                    segment_ids[position] = index
        return cls(ids, segment_ids)

    def slice(self, start: int, end: int) -> ChatTokens:
        """The tokens from `start` up to, but not including, `end`."""
        return ChatTokens(self.ids[start:end], self.segment_ids[start:end])

    def last(self, tokens: int) -> ChatTokens:
        """The last tokens only."""
        return self.slice(max(len(self.ids) - tokens, 0), len(self.ids))

    def pieces(self, tokens: int) -> Iterator[ChatTokens]:
        """Split the chat into pieces of at most this many tokens."""
        return (self.slice(start, start + tokens) for start in range(0, len(self.ids), tokens))


def left_padded(rows: Sequence[Tensor], fill: int) -> Tensor:
    """Pad rows of different lengths to `[rows, tokens]` on the left, so that they end together."""
    return pad_sequence(list(rows), batch_first=True, padding_value=fill, padding_side="left")


def right_padded(rows: Sequence[Tensor], fill: int) -> Tensor:
    """Pad rows of different lengths to `[rows, tokens]` on the right, so that they begin together."""
    return pad_sequence(list(rows), batch_first=True, padding_value=fill)


def with_system(system: str | None, messages: Sequence[Message]) -> list[Message]:
    """The messages with a system prompt before them; None leaves the system prompt to the template."""
    return [*messages] if system is None else [{"role": "system", "content": system}, *messages]


def system_prompt(messages: Sequence[Message]) -> list[Message]:
    """The system prompt at the beginning of a chat, as a list of one message; an empty list if there is none."""
    return [message for message in messages[:1] if message["role"] == "system"]


def told(text: str) -> list[Message]:
    """A text as a user's message, with the acknowledgement that such messages had in training."""
    return [{"role": "user", "content": text}, {"role": "assistant", "content": ACKNOWLEDGEMENT}]


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """Render a chat as text with the tokenizer's template.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the chat.
        add_generation_prompt: whether to append the header of an answer.
        template_options: further options of the template, such as `{"enable_thinking": False}` or `{"tools": [...]}`.

    Raises:
        ValueError: the tokenizer has no chat template, the template refuses the chat, or an option is set here.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("this tokenizer has no chat template; use the tokenizer of an instruction-tuned model, or set one")
    options = template_options or {}
    decided = [name for name in options if name in DECIDED]
    if decided:
        raise ValueError(
            f"{decided[0]} is no option of a chat template: it is decided for each rendering. Remove it from template_options"
        )
    chosen = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return tokenizer.apply_chat_template(list(messages), **chosen, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the tokenizer's chat template refuses a chat of the roles {roles}: {error}; give a chat that the template "
            "accepts, for instance without a system prompt, or set another template"
        ) from error


def check_messages(messages: Any) -> None:
    """Check that a value is a list of chat messages.

    Raises:
        ValueError: it is not a list of `{"role": str, "content": str}`; the message says what was given.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f'a chat is a list of {{"role": ..., "content": ...}}, got {messages!r:.80}')
    for message in messages:
        parts = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f'a message is {{"role": text, "content": text}}, got {message!r:.80}')


def _segments(text: str, messages: Sequence[Message], places: Sequence[Place | None], write: WriteUnit) -> Iterator[Place]:
    """The start and end in the rendered text of every message or sentence that is written: all but the system prompt's."""
    for message, place in zip(messages, places, strict=True):
        if message["role"] == "system" or not message["content"].strip():
            continue
        if place is None:
            raise ValueError(
                f"the chat template does not render the message {message['content'].strip()[:40]!r} unchanged, so its tokens "
                "cannot be found; set another template, or use an adapter that writes tokens"
            )
        start, end = place
        if write == "message":
            yield place
        else:
            yield from ((start + first, start + last) for first, last in sentences(text[start:end]))

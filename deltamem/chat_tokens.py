"""Chats as tokens: rendered by the tokenizer's own chat template, with the segments that SSW adapters write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deltamem.config import WriteUnit

Message = Mapping[str, str]

# A sentence ends with its punctuation (and closing quotes or brackets) unless the text goes on in lower case, at a line break,
# or with the message.
SENTENCE = re.compile(r"\S.*?(?:[.!?…]+[\"'”’)\]]*(?=\s+[^\sa-z]|\s*$)|(?=\n)|$)")


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
    def of(
        cls, tokenizer: Any, messages: Sequence[Message], write: WriteUnit = "token", add_generation_prompt: bool = False
    ) -> ChatTokens:
        """Render and tokenise a chat; `write` says what its segments are."""
        text = render(tokenizer, messages, add_generation_prompt)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=write != "token")
        ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
        segment_ids = torch.full_like(ids, -1)
        if write != "token":
            spans = list(_segments(text, messages, write))
            for position, (start, end) in enumerate(encoded["offset_mapping"]):
                segment_ids[position] = _segment_at(spans, start, end)
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


def with_system(system: str | None, messages: Sequence[Message]) -> list[Message]:
    """The messages behind a system prompt; without one if it is None, which leaves it to the template."""
    return [*messages] if system is None else [{"role": "system", "content": system}, *messages]


def render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The chat as text, by the tokenizer's own template.

    Raises:
        ValueError: the tokenizer has no chat template, or one that refuses the chat.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("this tokenizer has no chat template; use the tokenizer of an instruction-tuned model, or set one")
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
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


def _segments(text: str, messages: Sequence[Message], write: WriteUnit) -> Iterator[tuple[int, int]]:
    """Start and end in the rendered text of every message, or sentence, that is written: all but the system prompt's."""
    cursor = 0
    for message in messages:
        content = message["content"].strip()  # templates may trim
        start = text.find(content, cursor)
        if start < 0:
            raise ValueError(
                f"the chat template does not render the message {content[:40]!r} as it is, so its tokens cannot be found; use "
                "an adapter that writes tokens"
            )
        cursor = start + len(content)
        if message["role"] == "system" or not content:
            continue
        if write == "message":
            yield start, cursor
        else:
            yield from ((start + match.start(), start + match.end()) for match in SENTENCE.finditer(content))


def _segment_at(spans: Sequence[tuple[int, int]], start: int, end: int) -> int:
    """The segment that a token at these characters overlaps, -1 if none."""
    return next((index for index, (first, last) in enumerate(spans) if start < last and end > first), -1)

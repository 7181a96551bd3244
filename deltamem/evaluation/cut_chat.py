"""A chat cut in two: a history, and the messages that continue it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.chat.tokens import ChatTokens, Message, render, system_prompt
from deltamem.config import WriteUnit
from deltamem.evaluation.scoring import Text
from deltamem.evaluation.subject import Subject
from deltamem.training.chats import Chat
from deltamem.training.scripts import token_ids

READ_MESSAGES = 4  # messages at the end of a chat; its history precedes them
HISTORY_TOKENS, CONTINUATION_TOKENS = 512, 256  # a longer history loses its beginning, a longer continuation its end


@dataclass(frozen=True)
class CutChat:
    """A chat as the tokens of its parts; the continuation's tokens are the same after the head as after a history.

    Args:
        head: what the chat template puts before the first message, the system prompt, `[tokens]`.
        history: the messages before the cut, with the segments for the adapter to write.
        continuation: the messages to read, `[tokens]`.
        said: which tokens of the continuation are scored, `[tokens]`: those of a message's content and its end-of-turn token,
            but no other tokens of the template.
    """

    head: Tensor
    history: ChatTokens
    continuation: Tensor
    said: Tensor

    @classmethod
    def from_messages(cls, subject: Subject, messages: Sequence[Message]) -> CutChat:
        """Cut a chat before its last messages, and tokenise the parts.

        Raises:
            ValueError: the chat template renders messages differently depending on their position, or alters a message that is
                read.
        """
        messages, tokenizer = subject.behind_system(messages), subject.tokenizer
        told, alone = messages[:-READ_MESSAGES], [*system_prompt(messages), *messages[-READ_MESSAGES:]]
        head = token_ids(tokenizer, _head(tokenizer, messages, told, alone))
        write: WriteUnit = subject.model.active_peft_config.write if subject.has_memory else "token"
        history = _behind(head, ChatTokens.from_messages(tokenizer, told, write))
        read = _behind(head, ChatTokens.from_messages(tokenizer, alone, "message"))
        return cls(
            head,
            history.last(HISTORY_TOKENS),
            read.ids[:CONTINUATION_TOKENS],
            _said(read, subject)[:CONTINUATION_TOKENS],
        )

    @property
    def written(self) -> ChatTokens:
        """The tokens to write to a memory: the system prompt and the history."""
        segment_ids = torch.cat([torch.full_like(self.head, -1), self.history.segment_ids])
        return ChatTokens(torch.cat([self.head, self.history.ids]), segment_ids)

    def behind(self, history: Tensor | None = None) -> Text:
        """The continuation after the system prompt and, if given, a history, `[tokens]`; both have the same scored tokens."""
        context = [self.head] if history is None else [self.head, history]
        scored = len(self.continuation) - (len(self.head) == 0)  # a first token without context is not predicted
        return Text(torch.cat([*context, self.continuation]), scored, self.said[-scored:])


def can_be_cut(chat: Chat) -> bool:
    """Whether a chat has messages before those that are read."""
    messages = chat["messages"]
    return len(messages) - len(system_prompt(messages)) > READ_MESSAGES


def has_something_to_read(chat: Chat) -> bool:
    """Whether the messages that are read have any content."""
    return any(message["content"].strip() for message in chat["messages"][-READ_MESSAGES:] if message["role"] != "system")


def _head(tokenizer: Any, messages: Sequence[Message], told: Sequence[Message], alone: Sequence[Message]) -> str:
    """What the template puts before the first message.

    Args:
        tokenizer: has a chat template.
        messages: the chat.
        told: the messages before the cut.
        alone: the messages after the cut, with the system prompt before them.
    """
    whole, before, rest = (render(tokenizer, chat) for chat in (messages, told, alone))
    continuation = whole.removeprefix(before)
    head = rest.removesuffix(continuation)
    if not (whole.startswith(before) and rest.endswith(continuation) and before.startswith(head)):
        _refuse()
    return head


def _behind(head: Tensor, tokens: ChatTokens) -> ChatTokens:
    """The tokens that follow a head."""
    if not torch.equal(tokens.ids[: len(head)], head):
        _refuse()
    return tokens.slice(len(head), len(tokens.ids))


def _refuse() -> NoReturn:
    raise ValueError(
        "the tokenizer's chat template renders messages differently after a history than after a system prompt alone, so a "
        "chat cannot be read on from its middle; evaluate with questions about chats"
    )


def _said(read: ChatTokens, subject: Subject) -> Tensor:
    """Mark the tokens of a message's content, and the end-of-turn token directly after it, `[tokens]`."""
    of_message = read.segment_ids >= 0
    ends = torch.isin(read.ids, torch.tensor([*subject.ends], dtype=torch.long, device="cpu"))
    return of_message | (F.pad(of_message, (1, -1)) & ends)

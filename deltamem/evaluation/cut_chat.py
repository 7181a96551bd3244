"""A chat cut in two: a history, and messages that go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem.chat.tokens import ChatTokens, Message, render, system_prompt
from deltamem.config import WriteUnit
from deltamem.evaluation.scoring import Text
from deltamem.evaluation.subject import Subject
from deltamem.training.chats import Chat
from deltamem.training.scripts import token_ids

READ_MESSAGES = 4  # at the end of a chat; before them is its history
HISTORY_TOKENS, CONTINUATION_TOKENS = 512, 256  # a longer history loses its beginning, a longer continuation its end


@dataclass(frozen=True)
class CutChat:
    """A chat as the tokens of its parts; the continuation's are the same behind the head as behind a history.

    Args:
        history: the system prompt and the messages before the cut, with the segments that the adapter writes.
        head: what the chat template puts before a first message: the system prompt, `[tokens]`.
        continuation: what is read, `[tokens]`.
    """

    history: ChatTokens
    head: Tensor
    continuation: Tensor

    @classmethod
    def of(cls, subject: Subject, messages: Sequence[Message]) -> CutChat:
        """Cut a chat before the last messages, and tokenise the parts.

        Raises:
            ValueError: a chat template that renders messages in different ways.
        """
        messages = subject.behind_system(messages)
        told, read = messages[:-READ_MESSAGES], messages[-READ_MESSAGES:]
        whole, before, alone = (render(subject.tokenizer, chat) for chat in (messages, told, [*system_prompt(messages), *read]))
        continuation = whole.removeprefix(before)
        if not (whole.startswith(before) and alone.endswith(continuation)):
            raise ValueError(
                "the tokenizer's chat template renders messages otherwise behind a history than behind a system prompt "
                "alone, so a chat cannot be read on from its middle; evaluate with questions about chats"
            )
        write: WriteUnit = subject.model.active_peft_config.write if subject.has_memory else "token"
        return cls(
            ChatTokens.of(subject.tokenizer, told, write).last(HISTORY_TOKENS),
            token_ids(subject.tokenizer, alone.removesuffix(continuation)),
            token_ids(subject.tokenizer, continuation)[:CONTINUATION_TOKENS],
        )

    def behind(self, context: Tensor) -> Text:
        """The continuation behind a context, `[tokens]`, to be scored: all that stands behind a token in every context."""
        scored = len(self.continuation) - (len(self.head) == 0)
        return Text(torch.cat([context, self.continuation]), scored)


def can_be_cut(chat: Chat) -> bool:
    """Whether a chat has a message before those that are read."""
    messages = chat["messages"]
    return len(messages) - len(system_prompt(messages)) > READ_MESSAGES

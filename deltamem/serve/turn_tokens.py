"""TurnTokens: the tokens of a turn's chat, and which of them are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltamem.chat.continuation import new_from
from deltamem.chat.tokens import ChatTokens, Message
from deltamem.config import WriteUnit
from deltamem.serve.turn import Sampling

# Tokens of an answer whose length the request leaves open.
LONGEST_ANSWER = 1024


class TooLongError(ValueError):
    """A chat does not fit into the model's context."""


@dataclass(frozen=True)
class Prompt:
    """What an answer is generated from.

    Args:
        tokens: the chat, up to where the answer begins.
        sampling: the turn's, with a length that fits behind it.
    """

    tokens: ChatTokens
    sampling: Sampling


@dataclass(frozen=True)
class TurnTokens:
    """Turns chats into tokens.

    Args:
        tokenizer: the model's tokenizer.
        unit: what the adapter writes.
        context: the longest text that the model reads, in tokens.
    """

    tokenizer: Any
    unit: WriteUnit
    context: int

    def prompt(self, messages: Sequence[Message], sampling: Sampling) -> Prompt:
        """The tokens of a chat that is to be answered.

        Raises:
            TooLongError: the context is too short.
        """
        prompt = self._tokens(messages, add_generation_prompt=True)
        ending = len(self._tokens([*messages, {"role": "assistant", "content": ""}]).ids) - len(prompt.ids)
        tokens = len(prompt.ids) + ending
        room = self.context - tokens
        if room < (sampling.max_tokens or 1):
            raise TooLongError(
                f"this chat has {tokens} tokens and asks for {sampling.max_tokens or 1} more, and the model's context is "
                f"{self.context}; send fewer messages (the memory keeps what the others said) or ask for fewer tokens"
            )
        return Prompt(prompt, replace(sampling, max_tokens=sampling.max_tokens or min(room, LONGEST_ANSWER)))

    def written(self, messages: Sequence[Message], known: int) -> tuple[ChatTokens, int]:
        """The tokens of a chat that is to be written, and the first of them that does not belong to its known messages.

        Raises:
            TooLongError: the context is too short.
        """
        tokens = self._tokens(messages)
        if len(tokens.ids) > self.context:
            raise TooLongError(
                f"these messages have {len(tokens.ids)} tokens, and the model's context is {self.context}; send fewer at once"
            )
        return tokens, self._first_new(tokens, messages, known)

    def _first_new(self, tokens: ChatTokens, messages: Sequence[Message], known: int) -> int:
        if not known:
            return 0
        before = self._tokens(messages[:known]).ids
        if torch.equal(tokens.ids[: len(before)], before):
            return len(before)
        return new_from(self.tokenizer, messages, known)

    def _tokens(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> ChatTokens:
        return ChatTokens.from_messages(self.tokenizer, messages, self.unit, add_generation_prompt)

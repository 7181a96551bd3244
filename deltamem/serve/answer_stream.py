"""AnswerStream: an answer that grows token by token, and is sent in pieces."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from deltamem.serve.answer_text import AnswerText
from deltamem.serve.turn import Event, FinishReason, Piece, Sampling, TokenChoice
from deltamem.serve.turn_tokens import LONGEST_ANSWER


class AnswerStream:
    """Sends the text of an answer, and tells where it ends.

    Args:
        tokenizer: the model's tokenizer.
        sampling: where the answer ends.
        emit: receives the pieces.

    Attributes:
        tokens: the number of tokens so far.
        reason: why the answer ended.
    """

    def __init__(self, tokenizer: Any, sampling: Sampling, emit: Callable[[Event], None]) -> None:
        self._most, self._emit = sampling.max_tokens or LONGEST_ANSWER, emit
        self._text = AnswerText(tokenizer, sampling.stop)
        self._unsent: list[TokenChoice] = []
        self.tokens = 0
        self.reason: FinishReason = "length"

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._text.text

    def add(self, choice: TokenChoice, ends: Collection[int]) -> bool:
        """Add a token, and return whether the answer goes on after it.

        Args:
            choice: the token.
            ends: the tokens that end an answer; they are no part of its text.
        """
        self.tokens += 1
        if choice.token in ends:
            self.reason, new = "stop", self._text.end()
        else:
            self._unsent.append(choice)
            new = self._text.add(choice.token)
            if self._text.stopped:
                self.reason = "stop"
            elif self.tokens < self._most:
                self._send(new)
                return True
            else:
                self.reason, new = "length", new + self._text.end()
        self._send(new, last=True)
        return False

    def _send(self, text: str, last: bool = False) -> None:
        if text or (last and self._unsent):
            self._emit(Piece(text, tuple(self._unsent)))
            self._unsent.clear()

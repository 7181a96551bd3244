"""AnswerText: the text of an answer that grows token by token, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What a tokenizer makes of an incomplete character.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Decodes the tokens of an answer, and holds back what may still change.

    That is an incomplete character, or the start of a stop text.

    Args:
        tokenizer: the model's tokenizer.
        stop: texts at which the answer ends.

    Attributes:
        text: the answer so far, without surrounding white space and without what is held back.
        stopped: whether a stop text was found.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        # The text of the first `_read` tokens, which are not decoded again: the text of a token may depend on the one before it
        # (a space between words), so later tokens are decoded with those from `_start` on.
        self._decoded, self._start, self._read = "", 0, 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token, and return the new text."""
        self._tokens.append(token)
        text = self._text_so_far()
        places = [place for place in map(text.find, self._stop) if place >= 0]
        if places:
            self.stopped = True
            return self._show(text[: min(places)].rstrip())
        return self._show(text[: len(text) - self._undecided(text)].rstrip())

    def end(self) -> str:
        """End the answer, and return the text that was held back."""
        return "" if self.stopped else self._show(self._text_so_far().rstrip())

    def _text_so_far(self) -> str:
        known = self._decode(self._tokens[self._start : self._read])
        new = self._decode(self._tokens[self._start :])[len(known) :]
        text = self._decoded + new
        if new and not new.endswith(INCOMPLETE):
            self._decoded, self._start, self._read = text, self._read, len(self._tokens)
        return text.lstrip()

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _show(self, text: str) -> str:
        new, self.text = text[len(self.text) :], text
        return new

    def _undecided(self, text: str) -> int:
        """How many of the last characters may still change."""
        if text.endswith(INCOMPLETE):
            return len(text) - len(text.rstrip(INCOMPLETE))
        lengths = ((stop, length) for stop in self._stop for length in range(1, min(len(stop), len(text) + 1)))
        starts = (length for stop, length in lengths if text.endswith(stop[:length]))
        return max(starts, default=0)

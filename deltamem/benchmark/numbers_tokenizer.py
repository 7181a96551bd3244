"""A tokenizer whose text is the numbers of the tokens: a benchmark's shapes have no tokenizer of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


class NumbersTokenizer:
    """Reads and writes tokens as their numbers, one word each; its chat template adds none."""

    chat_template = "the contents of the messages"
    eos_token_id = None

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The messages' contents, one after the other."""
        return " ".join(message["content"] for message in messages if message["content"])

    def __call__(self, text: str, **options: Any) -> dict[str, list[Any]]:
        """The tokens of a text, and where they are in it."""
        words = [*re.finditer(r"\d+", text)]
        return {"input_ids": [int(word[0]) for word in words], "offset_mapping": [word.span() for word in words]}

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        """The text of tokens."""
        return " ".join(map(str, tokens))

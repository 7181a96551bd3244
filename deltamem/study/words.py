"""A word-level tokenizer for the fact generator's language, with a chat template."""

from __future__ import annotations

import importlib.resources
import json
import string
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deltamem.training.facts.topics import NUMBERS, enumerated

PAD, UNKNOWN, END = "<pad>", "<unk>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Build the small backbone's tokenizer: one token for every word, number and punctuation mark of generated facts."""
    splitter = pre_tokenizers.Whitespace()
    words = {word for text in _language() for word, _ in splitter.pre_tokenize_str(text)}
    vocabulary = [PAD, UNKNOWN, END, *ROLES, *sorted(words)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END, additional_special_tokens=[*ROLES]
    )
    fast.chat_template = TEMPLATE
    return fast


def _language() -> Iterator[str]:
    """Yield every text that the fact generator combines, and all digits and punctuation."""
    for file in importlib.resources.files("deltamem.training.facts").iterdir():
        if file.name.endswith(".json"):
            yield from _texts(json.loads(file.read_text(encoding="utf-8")))
    yield from (enumerated([number, number]) for number in NUMBERS)
    yield " ".join(string.digits + string.punctuation)


def _texts(part: Any) -> Iterator[str]:
    """Yield all strings in a JSON document, including a template's placeholders."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        yield from part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _texts(inner)

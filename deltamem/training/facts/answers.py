"""Answers in sentences: what the user said, said back."""

from __future__ import annotations

import random
import re

from deltamem.training.facts.episode import Fact
from deltamem.training.facts.vocabulary import USER, Split, templates

# In this order; "me" is the only other word of the sentences about the user that changes.
SECOND_PERSON = (
    (r"\bI am\b", "you are"),
    (r"\bI was\b", "you were"),
    (r"\bI\b", "you"),
    (r"\b[Mm]y\b", "your"),
    (r"\bme\b", "you"),
)


def sentence(rng: random.Random, fact: Fact, split: Split) -> str:
    """State a fact as an answer: "Anna's favourite colour is teal.", or "Your favourite colour is teal." to the user."""
    template = rng.choice(templates(fact.attribute, "statements", split, fact.name))
    if fact.name == USER:
        template = to_second_person(template)
    return template.format(name=fact.name, value=fact.value)


def to_second_person(text: str) -> str:
    """Turn a sentence that says "I" into one that says "you"."""
    for first, second in SECOND_PERSON:
        text = re.sub(first, second, text)
    return text[0].upper() + text[1:]

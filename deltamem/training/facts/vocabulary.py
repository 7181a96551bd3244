"""The vocabulary of episodes: people, attributes and sentences, each with a held-out part.

The sentences about the user are those of `first_person.json`, which has the kinds of `attributes.json`.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from typing import Any, Literal, get_args

Split = Literal["train", "held_out", "unseen_values"]
Part = Literal["train", "held_out"]  # of the vocabulary; training uses only "train"
USER = "the user"  # the person who says "I"
Attribute = dict[str, dict[Part, list[str]]]  # "values", and templates for sentences: "statements", "questions", ...


@functools.cache
def _read(file: str) -> Any:
    return json.loads(importlib.resources.files("deltamem.training.facts").joinpath(file).read_text(encoding="utf-8"))


def names(split: Split) -> list[str]:
    """The names of a split's people."""
    people: dict[Part, list[str]] = _read("names.json")
    return people[wording(split)]


def attributes() -> dict[str, Attribute]:
    """The attributes of people, by name; those with "several" templates allow a person several values."""
    told: dict[str, Attribute] = _read("attributes.json")
    return told


def values(attribute: str, split: Split) -> list[str]:
    """The values of an attribute in a split."""
    return attributes()[attribute]["values"]["held_out" if split == "unseen_values" else "train"]


def templates(attribute: str, kind: str, split: Split, name: str) -> list[str]:
    """The sentence templates of a kind for an attribute of a person.

    Their placeholders are {name}, if the person is not the user, and {value}, if they state the value.
    """
    told: dict[str, Attribute] = _read("first_person.json") if name == USER else attributes()
    return told[attribute][kind][wording(split)]


def small_talk(part: Part) -> list[tuple[str, str]]:
    """Turns about nothing in particular: the user's message and the answer."""
    return [(user, assistant) for user, assistant in _read("small_talk.json")["turns"][part]]


def acknowledgements() -> list[str]:
    """The assistant's answers to a message that tells something."""
    answers: list[str] = _read("small_talk.json")["acknowledgements"]
    return answers


def held_out_values() -> set[str]:
    """All held-out values, those of "unseen_values" episodes."""
    return {value for attribute in attributes().values() for value in attribute["values"]["held_out"]}


@functools.cache
def names_and_values() -> frozenset[str]:
    """Every name and value of every split, in lower case; each is a single word."""
    people = [name for split in get_args(Split) for name in names(split)]
    things = [value for attribute in attributes().values() for part in attribute["values"].values() for value in part]
    return frozenset(word.lower() for word in people + things)


def words_of(text: str) -> set[str]:
    """The distinct words of a text, in lower case."""
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def wording(split: Split) -> Part:
    """The part that a split's names, sentences and fillers come from."""
    return "train" if split == "train" else "held_out"

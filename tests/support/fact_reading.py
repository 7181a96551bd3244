"""An oracle for episodes: reads a history back, knowing the data's files and nothing of how it was made."""

import json
import re
from importlib.resources import files
from typing import NamedTuple


def read(file):
    return json.loads(files("deltamem.training.facts").joinpath(file).read_text(encoding="utf-8"))


NAMES, ATTRIBUTES, SMALL_TALK = read("names.json"), read("attributes.json"), read("small_talk.json")
# The part of the data from which a split takes its names, sentences and fillers, and its values.
PARTS = {"train": ("train", "train"), "held_out": ("held_out", "train"), "unseen_values": ("held_out", "held_out")}
TELLING = ("statements", "updates", "several")


class Told(NamedTuple):
    name: str
    attribute: str
    value: str
    kind: str  # of sentence


def values(attribute, split):
    return ATTRIBUTES[attribute]["values"][PARTS[split][1]]


def sentences(attribute, kind, split):
    return ATTRIBUTES[attribute].get(kind, {}).get(PARTS[split][0], [])


def filler_count(episode, split):
    """How many user messages of a history are small talk; the last may be cut."""
    return sum(is_filler(message["content"], split) for message in episode.history[::2])


def is_filler(text, split):
    return any(f"{user} ".startswith(f"{text} ") for user, _ in SMALL_TALK["turns"][PARTS[split][0]])


def read_history(episode, split):
    """All that a history tells, in order; fails where a sentence is not one of the split, or can be read in two ways."""
    messages = [message["content"] for message in episode.history[::2]]
    return [told for text in messages if not is_filler(text, split) for told in read_message(text, split)]


def read_message(text, split):
    while text:
        found = [*readings(text, split)]
        assert len(found) == 1, f"{text!r} starts with {found}"
        ((told, end),) = found
        assert told.name in NAMES[PARTS[split][0]]
        assert told.value in values(told.attribute, split)
        yield told
        text = text[end:].lstrip()


def readings(text, split):
    """The statements that a text may start with, and where they end."""
    for attribute in ATTRIBUTES:
        for kind in TELLING:
            for sentence in sentences(attribute, kind, split):
                if match := pattern(sentence).match(text):
                    yield Told(**match.groupdict(), attribute=attribute, kind=kind), match.end()


def pattern(sentence):
    named = {"{name}": r"(?P<name>\w+)", "{value}": r"(?P<value>\w+)"}
    parts = re.split(r"({\w+})", sentence)
    return re.compile("".join(named.get(part, re.escape(part)) for part in parts) + r"(?=$| )")

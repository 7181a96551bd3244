"""Views: the ways in which a trained memory will be used, each a way to pass an episode through the model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import Dataset

Chat = dict[str, Any]


@dataclass(frozen=True)
class View:
    """How an episode is passed through the model, and what its answers are compared with.

    Args:
        filled: the history was written to the memory before, in a context of its own; otherwise the memory starts empty.
        context: the history is in the context of the questions.
        write: the read pass writes, too.
        target: the episode's "answer"s, or what the bare "backbone" would say.
    """

    filled: bool = True
    context: bool = False
    write: bool = False
    target: Literal["answer", "backbone"] = "answer"


VIEWS: dict[str, View] = {
    "memory": View(),  # the history is out of the context
    "memory_writing": View(write=True),  # likewise, and the questions are written while they are read
    "context_and_memory": View(context=True),  # the memory must not spoil what the context says
    "context": View(filled=False, context=True, write=True),  # a conversation from its beginning, written while it is read
    "unrelated": View(target="backbone"),  # a filled memory, and a chat that has nothing to do with it
}
# Controls, nothing to train on: no memory, and another episode's.
ZERO_MEMORY, SHUFFLED_MEMORY = "zero_memory", "shuffled_memory"
ALL_VIEWS = VIEWS | {ZERO_MEMORY: View(filled=False), SHUFFLED_MEMORY: View()}


def view_weights(given: Sequence[str]) -> dict[str, float]:
    """Sampling weights from texts such as "memory=0.7".

    Raises:
        ValueError: no weights; an unknown view, or one given twice; a weight that is no positive number.
    """
    weights: dict[str, float] = {}
    for text in given:
        name, _, weight = text.partition("=")
        if name not in VIEWS or name in weights:
            raise ValueError(f"{text!r} names no view, or one again; give VIEW=WEIGHT of {', '.join(VIEWS)}, each once")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = -1.0
        if not 0 < weights[name] < float("inf"):
            raise ValueError(f"{text!r} has no weight; give VIEW=WEIGHT with a number above 0, such as {name}=0.5")
    if not weights:
        raise ValueError("no view to train; give one or more of " + ", ".join(f"{name}=WEIGHT" for name in VIEWS))
    return weights


def check_views(views: Iterable[str], writes_segments: bool) -> None:
    """Make sure that an adapter learns something in every view.

    Raises:
        ValueError: one that writes segments (SSW), in a view that writes while it reads.
    """
    useless = [name for name in views if VIEWS[name].write] if writes_segments else []
    if useless:
        raise ValueError(
            f"the views {', '.join(useless)} write while they read, and an adapter that writes messages or sentences reads "
            "only what was written before the pass: it would learn nothing from that. Leave them out"
        )


class InViews(Dataset[Chat]):
    """Chats, each in a view; which one depends on the seed and its place alone.

    Args:
        chats: `{"messages": [...], "read_turns": ...}`.
        weights: how often each view is drawn, in proportion.
        seed: of the choice.
        unrelated: chats without a system prompt that the view of this name asks instead, turns of a user and an assistant.

    Raises:
        ValueError: there are none, but that view.
    """

    def __init__(
        self, chats: Any, weights: Mapping[str, float], seed: int, unrelated: Sequence[Sequence[Mapping[str, str]]] = ()
    ) -> None:
        if not unrelated and any(ALL_VIEWS[view].target == "backbone" for view in weights):
            raise ValueError("the view unrelated needs chats that have nothing to do with the episodes, and got none")
        self.chats, self.weights, self.seed, self.unrelated = chats, weights, seed, unrelated

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> Chat:
        rng = random.Random(f"{self.seed}-view-{index}")
        (view,) = rng.choices([*self.weights], [*self.weights.values()])
        chat = {**self.chats[index], "view": view}
        if ALL_VIEWS[view].target == "backbone":
            turns = rng.choice(self.unrelated)
            chat.update(messages=[*history(chat), *turns], read_turns=len(turns) // 2)
        return chat


class WithAnothersHistory(Dataset[Chat]):
    """The control of a shuffled memory: every chat's questions behind the history of the next chat."""

    def __init__(self, chats: Any) -> None:
        if len(chats) < 2:
            raise ValueError(f"the control with another episode's memory needs at least 2 episodes, got {len(chats)}")
        self.chats = chats

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> Chat:
        chat, other = self.chats[index], self.chats[(index + 1) % len(self.chats)]
        questions = chat["messages"][len(history(chat)) :]
        return {**chat, "messages": [*history(other), *questions], "view": SHUFFLED_MEMORY}


def in_views_and_controls(chats: Any, views: Sequence[str], unrelated: Sequence[Any], seed: int) -> dict[str, Any]:
    """A data set for each view and control, by its name: what a Trainer evaluates on one after the other."""
    sets: dict[str, Any] = {view: InViews(chats, {view: 1.0}, seed, unrelated) for view in views}
    return sets | {ZERO_MEMORY: InViews(chats, {ZERO_MEMORY: 1.0}, seed), SHUFFLED_MEMORY: WithAnothersHistory(chats)}


def history(chat: Chat) -> Sequence[Mapping[str, str]]:
    """All messages before the questions."""
    messages: Sequence[Mapping[str, str]] = chat["messages"]
    return messages[: len(messages) - 2 * chat.get("read_turns", 1)]

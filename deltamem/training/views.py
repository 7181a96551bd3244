"""Views: the ways in which a trained memory will be used, each a way to pass an episode through the model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch.utils.data import Dataset

from deltamem.chat.tokens import system_prompt
from deltamem.training.chats import Chat, history

# By source, each as likely: raw texts, and messages without a system prompt.
Unrelated = Sequence[Sequence[str | Sequence[Mapping[str, str]]]]


@dataclass(frozen=True)
class View:
    """How an episode is passed through the model, and what its answers are compared with.

    Args:
        filled: the history was written to the memory before, in a context of its own; otherwise the memory starts empty.
        context: the history is in the context of the questions.
        write: the read pass writes, too.
        another: the memory is that of another chat.
        target: the chat's own "answer"s; what the bare "backbone" would say, that has no history; or the "history" itself,
            which is read once more.
        own: what is read is the chat's own; otherwise it has nothing to do with it.
    """

    filled: bool = True
    context: bool = False
    write: bool = False
    another: bool = False
    own: bool = True
    target: Literal["answer", "backbone", "history"] = "answer"


VIEWS: dict[str, View] = {
    "memory": View(),  # the history is out of the context
    "memory_writing": View(write=True),  # likewise, and the questions are written while they are read
    "context_and_memory": View(context=True),  # the memory must not spoil what the context says
    "context": View(filled=False, context=True, write=True),  # a conversation from its beginning, written while it is read
    "reconstruction": View(target="history"),  # what was written is read again, word for word
    "another": View(another=True, target="backbone"),  # another's memory must not change what is said
    "unrelated": View(own=False, target="backbone"),  # a filled memory, and a text that has nothing to do with it
}
# Controls, nothing to train on: no memory, another chat's, and what the bare backbone says with its own or another's history in
# the context, an empty memory being none.
ZERO_MEMORY, SHUFFLED_MEMORY = "zero_memory", "shuffled_memory"
IN_CONTEXT, SHUFFLED_IN_CONTEXT = "in_context", "shuffled_in_context"
CONTROLS: dict[str, View] = {
    ZERO_MEMORY: View(filled=False),
    SHUFFLED_MEMORY: View(),
    IN_CONTEXT: View(filled=False, context=True),
    SHUFFLED_IN_CONTEXT: View(filled=False, context=True),
}
ALL_VIEWS = VIEWS | CONTROLS


class Weight(NamedTuple):
    """How often something is drawn, in proportion, from the first step to the last."""

    first: float
    last: float

    def at(self, progress: float) -> float:
        """The weight at a share of all steps."""
        return self.first + (self.last - self.first) * progress


def view_weights(given: Sequence[str]) -> dict[str, Weight]:
    """Sampling weights from texts such as "memory=0.7", or "unrelated=0.1:0.3" for one that changes from step to step.

    Raises:
        ValueError: no weights; an unknown view, or one given twice; a weight that is no positive number.
    """
    weights: dict[str, Weight] = {}
    for text in given:
        name, _, weight = text.partition("=")
        if name not in VIEWS or name in weights:
            raise ValueError(f"{text!r} names no view, or one again; give VIEW=WEIGHT of {', '.join(VIEWS)}, each once")
        first, _, last = weight.partition(":")
        weights[name] = Weight(_number(first), _number(last or first))
        if not all(0 < number < float("inf") for number in weights[name]):
            raise ValueError(
                f"{text!r} has no weight; give VIEW=WEIGHT with a number above 0, such as {name}=0.5, or {name}=0.1:0.5 for "
                "one that changes from the first step to the last"
            )
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
    """Chats, each with its reads; in which views these are depends on the seed and the chat's place alone.

    Args:
        chats: `{"messages": [...], ...}`.
        weights: how often each view is drawn, in proportion.
        seed: of what is drawn.
        unrelated: what the view of this name reads instead of the chat.
        reads: how many reads a chat has; one with questions, which are one thing to read, has no view twice.

    Raises:
        ValueError: a view needs something unrelated, and there is nothing.
    """

    def __init__(self, chats: Any, weights: Mapping[str, Weight], seed: int, unrelated: Unrelated = (), reads: int = 1) -> None:
        if not unrelated and any(not ALL_VIEWS[view].own for view in weights):
            raise ValueError("the view unrelated needs chats that have nothing to do with the episodes, and got none")
        self.chats, self.weights, self.seed, self.unrelated, self.reads = chats, weights, seed, unrelated, reads

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> Chat:
        rng, chat = random.Random(f"{self.seed}-view-{index}"), self.chats[index]
        weights = [weight.at(index / len(self)) for weight in self.weights.values()]
        views = rng.choices([*self.weights], weights, k=self.reads)
        if not chat.get("talk"):
            views = [*dict.fromkeys(views)]
        return {**chat, "seed": index, "reads": [self._read(view, chat, rng) for view in views]}

    def _read(self, view: str, chat: Chat, rng: random.Random) -> dict[str, Any]:
        if ALL_VIEWS[view].own:
            return {"view": view}
        instead = rng.choice(rng.choice(self.unrelated))
        if not isinstance(instead, str):
            instead = [*system_prompt(chat["messages"]), *instead]
        return {"view": view, "instead": instead}


class WithAnothersHistory(Dataset[Chat]):
    """The controls with another's history: every chat's questions behind the history of the next chat.

    Args:
        chats: with questions at their ends.
        view: the name of the control.
    """

    def __init__(self, chats: Any, view: str = SHUFFLED_MEMORY) -> None:
        if len(chats) < 2:
            raise ValueError(f"the control with another episode's memory needs at least 2 episodes, got {len(chats)}")
        self.chats, self.view = chats, view

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> Chat:
        chat, other = self.chats[index], self.chats[(index + 1) % len(self.chats)]
        questions = chat["messages"][len(history(chat)) :]
        return {**chat, "messages": [*history(other), *questions], "reads": [{"view": self.view}]}


def in_views_and_controls(chats: Any, views: Sequence[str], unrelated: Unrelated, seed: int) -> dict[str, Any]:
    """A data set for each view and control, by its name: what a Trainer evaluates on one after the other."""
    always = Weight(1.0, 1.0)
    own = [*views, ZERO_MEMORY, IN_CONTEXT]
    sets: dict[str, Any] = {view: InViews(chats, {view: always}, seed, unrelated) for view in own}
    return sets | {view: WithAnothersHistory(chats, view) for view in (SHUFFLED_MEMORY, SHUFFLED_IN_CONTEXT)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0

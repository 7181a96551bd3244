"""Views: the ways a trained memory will be used, each of which runs an episode through the model differently."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch.utils.data import Dataset

from deltamem.chat.tokens import system_prompt
from deltamem.training.chats import Chat, history

# Grouped by source, drawn equally often: raw texts, or messages without a system prompt.
Unrelated = Sequence[Sequence[str | Sequence[Mapping[str, str]]]]


@dataclass(frozen=True)
class View:
    """How an episode is run through the model, and the target of its read passes.

    Args:
        filled: the history is written to the memory first, in a separate context; otherwise the memory starts empty.
        context: the history is in the context of what is read.
        write: the read pass also writes.
        another: the memory is another chat's.
        target: the chat's own "answer"s; the predictions of the bare "backbone" without the history; or the "history" itself,
            which is read again.
        own: what is read belongs to the chat; otherwise it is unrelated.
    """

    filled: bool = True
    context: bool = False
    write: bool = False
    another: bool = False
    own: bool = True
    target: Literal["answer", "backbone", "history"] = "answer"


VIEWS: dict[str, View] = {
    "memory": View(),  # the history is out of the context
    "memory_writing": View(write=True),  # the same, but the questions are also written
    "context_and_memory": View(context=True),  # the memory must not spoil what the context says
    "context": View(filled=False, context=True, write=True),  # a conversation from its start, written as it is read
    "reconstruction": View(target="history"),  # what was written is read again, word for word
    "another": View(another=True, target="backbone"),  # another chat's memory must not change the predictions
    "unrelated": View(own=False, target="backbone"),  # a filled memory must not change unrelated text
}
# Controls, for evaluation only: no memory, another chat's memory, and the bare backbone with its own or another's history in
# context (an empty memory has no effect).
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
    """A relative sampling weight that changes linearly from the first step to the last."""

    first: float
    last: float

    def at(self, progress: float) -> float:
        """The weight after a fraction of all steps."""
        return self.first + (self.last - self.first) * progress


def view_weights(given: Sequence[str]) -> dict[str, Weight]:
    """Parse sampling weights from texts such as "memory=0.7", or "unrelated=0.1:0.3" for one that changes while training.

    Raises:
        ValueError: there are no weights; a view is unknown or given twice; a weight is not a positive number.
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
    """Check that an adapter can learn something in every view.

    Raises:
        ValueError: the adapter writes segments (SSW), and a view writes while it reads.
    """
    useless = [name for name in views if VIEWS[name].write] if writes_segments else []
    if useless:
        raise ValueError(
            f"the views {', '.join(useless)} write while they read, and an adapter that writes messages or sentences reads "
            "only what was written before the pass: it would learn nothing from that. Leave them out"
        )


class InViews(Dataset[Chat]):
    """Chats, each with its reads; their views depend only on the seed and the chat's index.

    Args:
        chats: `{"messages": [...], ...}`.
        weights: relative sampling weights of the views.
        seed: seeds the sampling.
        unrelated: what the view "unrelated" reads instead of the chat.
        reads: number of reads per chat; for a chat with questions, each view occurs at most once.

    Raises:
        ValueError: a view needs something unrelated, and nothing is given.
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
    """The controls with another chat's history: every chat's questions after the history of the next chat.

    Args:
        chats: each ends with questions.
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
    """Build a data set for each view and control, by name, for a Trainer to evaluate on."""
    always = Weight(1.0, 1.0)
    own = [*views, ZERO_MEMORY, IN_CONTEXT]
    sets: dict[str, Any] = {view: InViews(chats, {view: always}, seed, unrelated) for view in own}
    return sets | {view: WithAnothersHistory(chats, view) for view in (SHUFFLED_MEMORY, SHUFFLED_IN_CONTEXT)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0

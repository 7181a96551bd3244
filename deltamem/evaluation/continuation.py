"""How much a memory knows about its own chat: how well it predicts the rest, compared with another chat's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from peft import PeftModel

from deltamem.evaluation.benchmark_data import benchmark_records, identity, sampled_numbers
from deltamem.evaluation.cut_chat import READ_MESSAGES, CutChat, can_be_cut, has_something_to_read
from deltamem.evaluation.scoring import Text, score
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Derived, Metric, Options, Row, mean
from deltamem.intervals import Numbers, ratio
from deltamem.memory.state import DeltaMemState
from deltamem.training.chats import Chat, read_chats

NAME = "continuation"
# The bare backbone reads the continuation after the chat's system prompt alone ("none"), after that and the chat's history
# ("full"), or after that and the next chat's history ("full_shuffled"). With a memory, the continuation follows the system
# prompt; the memory holds the chat's system prompt and history, written in a separate context ("memory"), the next chat's
# ("shuffled"), or nothing ("zero"). "adapter" is any adapter without a memory.
WITHOUT_ADAPTER = ("none", "full", "full_shuffled")
WITH_MEMORY = ("memory", "shuffled", "zero")
OF_ANOTHER = ("full_shuffled", "shuffled")


def specific(nats: Mapping[str, Numbers]) -> Numbers:
    """How much the chat's own memory helps compared with another chat's, in nats per token."""
    return nats["shuffled"] - nats["memory"]


def bound(nats: Mapping[str, Numbers]) -> Numbers | None:
    """`specific` as a share of how much the chat's own history in context helps compared with another chat's."""
    return ratio(specific(nats), nats["full_shuffled"] - nats["full"])


METRICS = {
    "nats": Metric(
        "nats",
        mean,
        derived={
            "specific": Derived(("memory", "shuffled"), specific),
            "bound": Derived(("memory", "shuffled", "full", "full_shuffled"), bound, share=True),
        },
    )
}


@dataclass
class ContinuationTask:
    """Chats whose last messages are predicted; see `Task`.

    Args:
        chats: the chats, by their numbers in the data.
        identity: the options that selected them.
    """

    chats: Mapping[int, Chat]
    identity: dict[str, Any]
    name: str = NAME
    metrics: dict[str, Metric] = field(default_factory=lambda: METRICS)
    _cut: list[CutChat] = field(default_factory=list)
    _memories: dict[int, DeltaMemState] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chats)

    def settings(self, subject: Subject) -> tuple[str, ...]:
        """See `Task`."""
        if subject.has_memory:
            return (*WITHOUT_ADAPTER, *WITH_MEMORY)
        return (*WITHOUT_ADAPTER, "adapter") if isinstance(subject.model, PeftModel) else WITHOUT_ADAPTER

    def prepare(self, subject: Subject, settings: Sequence[str]) -> None:
        """See `Task`."""
        if len(self) < 2 and {*settings} & {*OF_ANOTHER}:
            raise ValueError(
                f"{self.name} has one chat, and the settings {' and '.join(OF_ANOTHER)} need another; leave them out"
            )
        self._cut = [CutChat.from_messages(subject, chat["messages"]) for chat in self.chats.values()]
        parts = ((cut.head, cut.history.ids, cut.continuation) for cut in self._cut)
        longest = sum(max(map(len, several)) for several in zip(*parts, strict=True))
        subject.check_window(longest, f"the longest chat of {self.name}")

    def answer(self, subject: Subject, settings: Sequence[str], places: Sequence[int]) -> dict[str, list[Row]]:
        """See `Task`."""
        return {setting: self._rows(subject, setting, places) for setting in settings}

    def _rows(self, subject: Subject, setting: str, places: Sequence[int]) -> list[Row]:
        others = [self._another(place) if setting in OF_ANOTHER else place for place in places]
        texts = [self._text(setting, place, other) for place, other in zip(places, others, strict=True)]
        with self._under(subject, setting, others):
            scores = score(subject, texts, with_adapter=setting == "adapter")
        numbers = [*self.chats]
        return [
            {"index": numbers[place], "nats": -scored.log_likelihood / int(text.counts.sum())}
            for place, text, scored in zip(places, texts, scores, strict=True)
        ]

    def _another(self, place: int) -> int:
        return (place + 1) % len(self)

    def _text(self, setting: str, place: int, told: int) -> Text:
        """A chat's continuation, after a history (its own or another's) if the setting has one in context."""
        return self._cut[place].behind(self._cut[told].history.ids if setting in ("full", "full_shuffled") else None)

    def _under(self, subject: Subject, setting: str, told: Sequence[int]) -> AbstractContextManager[Any]:
        """The context of a setting, with a memory row per chat; `told` are the indices of the chats that were written."""
        if setting in WITHOUT_ADAPTER:
            return subject.bare()
        if setting == "adapter":
            return nullcontext()
        memory = subject.model.new_memory(len(told)) if setting == "zero" else self._written(subject, told)
        return cast(AbstractContextManager[Any], subject.model.memory(memory, write=False))

    def _written(self, subject: Subject, places: Sequence[int]) -> DeltaMemState:
        """The memories of histories, each written once."""
        missing = [place for place in places if place not in self._memories]
        if missing:
            written = subject.write_tokens([self._cut[place].written for place in missing])
            self._memories |= {place: written[row] for row, place in enumerate(missing)}
        return DeltaMemState.stack(self._memories[place] for place in places)


def tasks(options: Options) -> list[ContinuationTask]:
    """Create the task; chats too short to have a history are left out.

    Raises:
        ValueError: the data is missing or malformed; no chat that has a history.
    """
    records = benchmark_records(NAME, None, options)
    chats = read_chats(records)
    long = {number: chat for number, chat in enumerate(chats) if can_be_cut(chat)}
    if not long:
        raise ValueError(
            f"{NAME} reads the last {READ_MESSAGES} messages of a chat and remembers those before, and none of the "
            f"{len(chats)} chats has more messages; give longer chats"
        )
    for number, chat in long.items():
        if not has_something_to_read(chat):
            records[number]["messages"].refuse(f"a chat that says something in its last {READ_MESSAGES} messages")
    numbers = [*long]
    chosen = {numbers[place]: long[numbers[place]] for place in sampled_numbers(len(numbers), options)}
    return [ContinuationTask(chosen, identity(options))]

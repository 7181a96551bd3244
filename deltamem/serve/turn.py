"""Turn: what the engine is asked to do for one memory, and the events that tell how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from deltamem.chat.tokens import Message
from deltamem.memory.state import DeltaMemState

Write = Literal["after", "during", False]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen, and where it ends.

    Args:
        max_tokens: the maximum length of the answer, in tokens; as long as there is room, up to a limit, if None.
        temperature: 0 for greedy decoding.
        top_p: the probability of the likeliest tokens among which one is drawn.
        seed: the seed of the draws; a random one if None.
        stop: texts at which the answer ends; they are not part of it.
        logprobs: how many of the likeliest tokens are reported with every token; None for no log-probabilities.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


class TokenChoice(NamedTuple):
    """A token of an answer.

    Args:
        token: its id.
        logprob: its log-probability; None unless asked for.
        top: the ids and log-probabilities of the likeliest tokens.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next piece of an answer's text, with the tokens since the last piece."""

    text: str
    tokens: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of a turn.

    Args:
        text: the whole answer; empty for a turn that only writes.
        reason: why the answer ended.
        memory: the memory after the turn; the one before it if nothing was written.
        written: number of tokens written.
        prompt_tokens, completion_tokens: number of tokens of the prompt and of the answer.
    """

    text: str
    reason: FinishReason
    memory: DeltaMemState
    written: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """The end of a turn that failed or was cancelled; the memory is the one before it."""

    error: BaseException


Event = Piece | Finished | Failed


class CancelledTurnError(RuntimeError):
    """The turn was cancelled, or took longer than allowed."""


@dataclass(frozen=True, eq=False)
class Turn:
    """A turn of a conversation.

    Args:
        messages: the chat, with its system prompt.
        known: how many of the messages, from the first, are read as context and not written. They were written before, or are a
            system prompt.
        memory: the memory before the turn; not changed.
        write: whether the other messages and the answer are written: "after" the answer; "during", the messages before the
            answer is generated; or not at all.
        sampling: how the answer is generated; None for a turn that only writes.
        tenant: turns of different tenants take turns.
        emit: receives the events, in the engine's thread; must not block.
        deadline: the time on `time.monotonic`'s clock at which the turn is cancelled; None for no limit.
    """

    messages: Sequence[Message]
    known: int
    memory: DeltaMemState
    write: Write
    sampling: Sampling | None
    emit: Callable[[Event], None]
    tenant: str = ""
    deadline: float | None = None
    _state: list[bool] = field(default_factory=lambda: [False])

    def cancel(self) -> None:
        """End the turn at the next token; its memory stays as it was."""
        self._state[0] = True

    @property
    def is_cancelled(self) -> bool:
        """Whether the turn should end."""
        return self._state[0]

"""Times how the server's scheduler answers several users at once, next to the bare backbone in the same scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from statistics import median, quantiles
from typing import Any

import torch
from rich.progress import Progress

from deltamem.benchmark.interleave import WARM_UP, take_turns
from deltamem.benchmark.numbers_tokenizer import NumbersTokenizer
from deltamem.benchmark.ratios import median_interval, quartiles
from deltamem.benchmark.twins import Adapted, Bare
from deltamem.serve.engine import Engine
from deltamem.serve.turn import Event, Failed, Piece, Sampling, Turn, Write

USERS = (1, 8, 32)
# Turns of each user, one after the other, so that some answers begin while others are decoded.
TURNS = 2
# What is compared: the bare backbone answers; a memory is read only, or written after the answer or during it.
BARE = "bare"
KINDS: dict[str, Write] = {BARE: False, "read": False, "after": "after", "during": "during"}


class _BareServed:
    """A backbone without an adapter, as the engine calls a model with one: its memory does nothing."""

    def __init__(self, bare: Bare, adapted: Adapted) -> None:
        self._model, self.active_peft_config = bare.model, adapted.config

    def memory(self, *given: Any, **options: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def weights_held(self) -> AbstractContextManager[None]:
        return nullcontext()

    def __call__(self, **given: Any) -> Any:
        return self._model(**given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass
class _Load:
    """Users who talk to an engine at once; each run is timed.

    Attributes:
        first, between: the milliseconds up to a turn's first token and between two tokens, for each run.
    """

    engine: Engine
    make_turn: Callable[[Callable[[Event], None]], Turn]
    users: int
    first: list[list[float]] = field(default_factory=list)
    between: list[list[float]] = field(default_factory=list)

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], object]]:
        """A workload of `take_turns`."""
        self.first.append([])
        self.between.append([])
        yield self._run

    def _run(self) -> None:
        ends: SimpleQueue[BaseException | None] = SimpleQueue()
        for _ in range(self.users):
            self._begin(TURNS, ends)
        for _ in range(self.users):
            error = ends.get()
            if error is not None:
                raise error

    def _begin(self, turns: int, ends: SimpleQueue[BaseException | None]) -> None:
        """Begin a user's next turn; the last one tells its end."""
        before, times = time.perf_counter(), self.first[-1]

        def emit(event: Event) -> None:
            nonlocal before, times
            if isinstance(event, Piece):
                now = time.perf_counter()
                times.append((now - before) * 1e3)
                before, times = now, self.between[-1]
            elif isinstance(event, Failed):
                ends.put(event.error)
            elif turns > 1:
                self._begin(turns - 1, ends)
            else:
                ends.put(None)

        self.engine.submit(self.make_turn(emit))


def time_serving(
    bare: Bare, adapted: Adapted, prompt: int, new_tokens: int, runs: int, progress: Progress
) -> list[dict[str, Any]]:
    """Time every kind of turn with every number of users, in turns.

    Args:
        bare, adapted: the models.
        prompt: length of a prompt in tokens.
        new_tokens: length of an answer in tokens.
        runs: number of turns.
        progress: shows the turns.

    Returns:
        One row for each number of `users` and `kind`: `tokens_per_second` of the answers and its quartiles; `of_bare`, the
        ratio to the bare backbone's, with its interval; `of_one`, the ratio to one user's; `first_ms` and `between_ms`, each
        the median and the 95th percentile.
    """
    served = _BareServed(bare, adapted)
    for model in (served, adapted.model):
        model.generation_config.eos_token_id = []  # every answer has its whole length
    make = partial(_new_turn, adapted, prompt, new_tokens)
    tokenizer, most = NumbersTokenizer(), max(USERS)
    with closing(Engine(served, tokenizer, most)) as plain, closing(Engine(adapted.model, tokenizer, most)) as engine:
        loads = {
            (users, kind): _Load(plain if kind == BARE else engine, partial(make, write), users)
            for users in USERS
            for kind, write in KINDS.items()
        }
        turns = take_turns([*loads.values()], runs, torch.device("cpu"), progress, "serving")
    took = {name: [turn[index] for turn in turns] for index, name in enumerate(loads)}
    return [_row(*name, load, took, new_tokens) for name, load in loads.items()]


def _new_turn(adapted: Adapted, prompt: int, new_tokens: int, write: Write, emit: Callable[[Event], None]) -> Turn:
    ids = torch.randint(adapted.model.config.vocab_size, (prompt,), dtype=torch.long, device="cpu").tolist()
    messages = [{"role": "user", "content": " ".join(map(str, ids))}]
    sampling = Sampling(max_tokens=new_tokens, temperature=0)
    return Turn(messages, 0, adapted.model.new_memory(), write, sampling, emit)


def _row(users: int, kind: str, load: _Load, took: dict[tuple[int, str], list[float]], new_tokens: int) -> dict[str, Any]:
    speeds = {name: [name[0] * TURNS * new_tokens * 1e3 / ms for ms in times] for name, times in took.items()}
    own = speeds[users, kind]
    ratios = [speed / base for speed, base in zip(own, speeds[users, BARE], strict=True)]
    return {
        "users": users,
        "kind": kind,
        "tokens_per_second": median(own),
        "tokens_per_second_quartiles": quartiles(own),
        "of_bare": median(ratios),
        "of_bare_interval": median_interval(ratios),
        "of_one": median(speed / one for speed, one in zip(own, speeds[USERS[0], kind], strict=True)),
        "first_ms": _middle_and_end(load.first),
        "between_ms": _middle_and_end(load.between),
    }


def _middle_and_end(runs: Sequence[Sequence[float]]) -> list[float] | None:
    """The median and the 95th percentile of all timed runs; None if answers have one token."""
    values = [value for run in runs[WARM_UP:] for value in run]
    return [median(values), quantiles(values, n=20, method="inclusive")[-1]] if len(values) > 1 else None

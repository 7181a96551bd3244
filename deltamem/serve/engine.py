"""Engine: runs the turns of many users in one thread, so that each makes progress and answers are decoded together."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from deltamem.serve.batch import new_batch
from deltamem.serve.passes import LONGEST_ANSWER, Decoding, Steps, TurnPasses
from deltamem.serve.sampling import Sampler
from deltamem.serve.turn import CancelledTurnError, Failed, Piece, TokenChoice, Turn


class BusyError(RuntimeError):
    """Too many turns wait already."""


@dataclass
class _Running:
    """A turn that has begun."""

    turn: Turn
    steps: Steps


@dataclass
class _Row:
    """A row of the batch: the answer that is decoded in it, and its last token."""

    running: _Running
    decoding: Decoding
    sampler: Sampler
    token: int = 0
    unsent: list[TokenChoice] = field(default_factory=list)


class Engine:
    """Runs turns. Between two tokens, turns enter and leave the batch.

    Each round runs one piece of one turn's prompt or write, and then one decode step for all answers. A waiting turn begins
    when fewer than `rows` turns run; tenants take turns.

    Args:
        model: a model with a δ-mem adapter, which nothing else uses or changes meanwhile.
        tokenizer: its tokenizer, with a chat template.
        rows: the maximum number of turns that run.
        waiting: the maximum number of turns that wait.
    """

    def __init__(self, model: Any, tokenizer: Any, rows: int = 32, waiting: int = 256) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._rows, self._most_waiting = rows, waiting
        self._waiting: OrderedDict[str, deque[Turn]] = OrderedDict()  # by tenant, the one whose turn it is first
        self._pieces: deque[_Running] = deque()  # turns with a piece to run
        self._decoding: list[_Row] = []  # in the order of the batch's rows
        self._batch = new_batch(model)
        self._ends = _end_tokens(model, tokenizer)
        self._changed = threading.Condition()
        self._closed = False
        self._held = ExitStack()
        self._held.enter_context(model.weights_held())
        self._thread = threading.Thread(target=self._run, name="deltamem-engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """How many turns run."""
        return len(self._pieces) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """How many turns wait."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def submit(self, turn: Turn) -> None:
        """Add a turn; its events follow.

        Raises:
            BusyError: too many turns wait.
            RuntimeError: the engine was closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine was closed; it runs no more turns")
            if self.waiting >= self._most_waiting:
                raise BusyError(f"{self.waiting} turns wait already, and no more are accepted; try again later")
            self._waiting.setdefault(turn.tenant, deque()).append(turn)
            self._changed.notify()

    def close(self) -> None:
        """Cancel all turns, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._held.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self.waiting or self.running):
                    self._changed.wait()
                if self._closed:
                    break
                ended = self._take_ended()
                self._begin_turns()
            for turn, error in ended:
                turn.emit(Failed(error))
            self._round()
        error = CancelledTurnError("the server is shutting down; the memory is as it was before this turn")
        for turn in [*(row.running.turn for row in self._decoding), *(running.turn for running in self._pieces)]:
            turn.emit(Failed(error))
        for turns in self._waiting.values():
            for turn in turns:
                turn.emit(Failed(error))

    def _take_ended(self) -> list[tuple[Turn, CancelledTurnError]]:
        """Take the turns out of the queue whose consumer left or whose time is over: they neither wait nor keep others out."""
        ended: list[tuple[Turn, CancelledTurnError]] = []
        for tenant, turns in [*self._waiting.items()]:
            reasons = {turn: error for turn in turns if (error := _reason_to_end(turn)) is not None}
            ended += reasons.items()
            self._waiting[tenant] = deque(turn for turn in turns if turn not in reasons)
            if not self._waiting[tenant]:
                del self._waiting[tenant]
        return ended

    def _begin_turns(self) -> None:
        while self._waiting and self.running < self._rows:
            tenant, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            self._waiting.move_to_end(tenant)
            if not turns:
                del self._waiting[tenant]
            self._pieces.append(_Running(turn, _steps(self.model, self.tokenizer, turn)))

    def _round(self) -> None:
        """Run one piece of one turn, and one decode step of all answers."""
        if self._pieces:
            self._advance(self._pieces.popleft())
        for number in range(len(self._decoding) - 1, -1, -1):
            row = self._decoding[number]
            error = _reason_to_end(row.running.turn)
            if error is not None:
                self._leave(number)
                row.running.turn.emit(Failed(error))
        if self._decoding:
            self._decode()

    def _advance(self, running: _Running) -> None:
        """Run a turn up to its next pause; what fails is the turn's own."""
        error: BaseException | None = _reason_to_end(running.turn)
        if error is None:
            try:
                with torch.no_grad():
                    decoding = next(running.steps)
                if decoding is None:
                    self._pieces.append(running)
                else:
                    self._enter(_Row(running, decoding, Sampler(decoding.sampling, decoding.logits.device)))
            except StopIteration as stop:
                running.turn.emit(stop.value)
            except Exception as caught:
                error = caught
        if error is not None:
            running.steps.close()
            running.turn.emit(Failed(error))

    def _enter(self, row: _Row) -> None:
        """Choose an answer's first token and, unless that ends it, add it to the batch."""
        if self._goes_on(row, row.decoding.logits):
            try:
                self._batch.add(row.decoding.cache, row.decoding.prompt, row.decoding.memory)
            except Exception as error:
                self._fail_rows(error)
                raise
            self._decoding.append(row)
        else:
            self._pieces.append(row.running)

    def _decode(self) -> None:
        """One decode step."""
        try:
            logits = self._batch.step([row.token for row in self._decoding])  # [rows, vocabulary]
        except Exception as error:
            self._fail_rows(error)
            return
        for number in range(len(self._decoding) - 1, -1, -1):  # from the last, so that the numbers before stay
            row = self._decoding[number]
            try:
                if not self._goes_on(row, logits[number]):
                    self._pieces.append(self._leave(number))
            except Exception as error:  # the row's own, such as logits that are not finite
                self._leave(number).turn.emit(Failed(error))

    def _fail_rows(self, error: Exception) -> None:
        """End all answers that are being decoded: after a lack of memory, say, nobody knows what the batch holds."""
        failed, self._decoding, self._batch = self._decoding, [], new_batch(self.model)
        for row in failed:
            row.running.turn.emit(Failed(error))

    def _leave(self, number: int) -> _Running:
        """Take a row out of the batch."""
        running = self._decoding[number].running
        self._batch.remove(number)
        self._decoding[number] = self._decoding[-1]
        self._decoding.pop()
        return running

    def _goes_on(self, row: _Row, logits: torch.Tensor) -> bool:
        """Choose an answer's next token from its logits, [vocabulary]; return whether the answer goes on after it."""
        decoding, choice = row.decoding, row.sampler.choose(logits)
        decoding.tokens += 1
        row.token = choice.token
        if choice.token in self._ends:
            decoding.reason, new = "stop", decoding.text.end()
        else:
            row.unsent.append(choice)
            new = decoding.text.add(choice.token)
            if decoding.text.stopped:
                decoding.reason = "stop"
            elif decoding.tokens < (decoding.sampling.max_tokens or LONGEST_ANSWER):
                self._send(row, new)
                return True
            else:
                decoding.reason, new = "length", new + decoding.text.end()
        self._send(row, new, last=True)
        return False

    def _send(self, row: _Row, text: str, last: bool = False) -> None:
        if text or (last and row.unsent):
            row.running.turn.emit(Piece(text, tuple(row.unsent)))
            row.unsent.clear()


def _steps(model: Any, tokenizer: Any, turn: Turn) -> Steps:
    """The steps of a turn, of which none is run yet."""
    return (yield from TurnPasses(model, tokenizer, turn).steps())


def _reason_to_end(turn: Turn) -> CancelledTurnError | None:
    if turn.is_cancelled:
        return CancelledTurnError("the turn was cancelled; the memory is as it was before it")
    if turn.deadline is not None and time.monotonic() > turn.deadline:
        return CancelledTurnError("the turn took longer than allowed; the memory is as it was before it")
    return None


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return {*ends} if isinstance(ends, list) else {ends}

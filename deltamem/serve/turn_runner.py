"""TurnRunner: runs the turns of many users in one thread."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from deltamem.memory.state import DeltaMemState
from deltamem.serve.turn import CancelledTurnError, Failed, Turn
from deltamem.serve.turn_queue import TurnQueue


class TurnRunner(ABC):
    """Runs turns. A waiting turn begins when fewer than `rows` turns run; tenants take turns.

    Args:
        tokenizer: the model's tokenizer, with a chat template.
        rows: the maximum number of turns that run.
        waiting: the maximum number of turns that wait.
    """

    def __init__(self, tokenizer: Any, rows: int, waiting: int) -> None:
        self.tokenizer = tokenizer
        self._rows, self._waiting = rows, TurnQueue(waiting)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="deltamem-engine", daemon=True)

    @abstractmethod
    def new_memory(self) -> DeltaMemState:
        """An empty memory."""

    @abstractmethod
    def accepted(self, state: DeltaMemState) -> DeltaMemState:
        """A memory from a store, as the turns take it.

        Raises:
            ValueError: another adapter wrote it.
        """

    @property
    @abstractmethod
    def running(self) -> int:
        """How many turns run."""

    @abstractmethod
    def _begin(self, turn: Turn) -> None:
        """Let a turn run, without doing its work yet: the queue is locked meanwhile."""

    @abstractmethod
    def _round(self) -> None:
        """Bring the running turns forward."""

    @abstractmethod
    def _running_turns(self) -> Sequence[Turn]:
        """The turns that run."""

    @property
    def waiting(self) -> int:
        """How many turns wait."""
        with self._changed:
            return len(self._waiting)

    def submit(self, turn: Turn) -> None:
        """Add a turn; its events follow.

        Raises:
            BusyError: too many turns wait.
            RuntimeError: the engine was closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine was closed; it runs no more turns")
            self._waiting.add(turn)
            self._changed.notify()

    def close(self) -> None:
        """Cancel all turns, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self.waiting or self.running):
                    self._changed.wait()
                if self._closed:
                    break
                ended = self._waiting.take_ended()
                while self._waiting and self.running < self._rows:
                    self._begin(self._waiting.next())
            for turn, error in ended:
                turn.emit(Failed(error))
            self._round()
        error = CancelledTurnError("the server is shutting down; the memory is as it was before this turn")
        for turn in (*self._running_turns(), *self._waiting.take_all()):
            turn.emit(Failed(error))

"""Engine: runs the turns of many users in one thread, so that each makes progress and answers are decoded together."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from deltamem.memory.state import DeltaMemState
from deltamem.serve.batch import new_batch
from deltamem.serve.passes import Decoding, Steps, TurnPasses
from deltamem.serve.sampling import Sampler
from deltamem.serve.turn import Failed, Turn
from deltamem.serve.turn_queue import reason_to_end
from deltamem.serve.turn_runner import TurnRunner


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


class Engine(TurnRunner):
    """Runs turns with a model of transformers. Between two tokens, turns enter and leave the batch.

    Each round runs one piece of one turn's prompt or write, and then one decode step for all answers.

    Args:
        model: a model with a δ-mem adapter, which nothing else uses or changes meanwhile.
        tokenizer: see `TurnRunner`.
        rows: see `TurnRunner`.
        waiting: see `TurnRunner`.
    """

    def __init__(self, model: Any, tokenizer: Any, rows: int = 32, waiting: int = 256) -> None:
        super().__init__(tokenizer, rows, waiting)
        self.model = model
        self._pieces: deque[_Running] = deque()  # turns with a piece to run
        self._decoding: list[_Row] = []  # in the order of the batch's rows
        self._batch = new_batch(model)
        self._ends = end_tokens(model.generation_config.eos_token_id, tokenizer)
        self._held = ExitStack()
        self._held.enter_context(model.weights_held())
        self._thread.start()

    def new_memory(self) -> DeltaMemState:
        """See `TurnRunner`."""
        memory: DeltaMemState = self.model.new_memory()
        return memory

    def accepted(self, state: DeltaMemState) -> DeltaMemState:
        """See `TurnRunner`."""
        self.model.memory(state, write=False)  # refuses one of another adapter
        return state.to(self.model.device)

    @property
    def running(self) -> int:
        """See `TurnRunner`."""
        return len(self._pieces) + len(self._decoding)

    def close(self) -> None:
        """See `TurnRunner`."""
        super().close()
        self._held.close()

    def _running_turns(self) -> list[Turn]:
        return [*(row.running.turn for row in self._decoding), *(running.turn for running in self._pieces)]

    def _begin(self, turn: Turn) -> None:
        self._pieces.append(_Running(turn, _steps(self.model, self.tokenizer, turn)))

    def _round(self) -> None:
        """Run one piece of one turn, and one decode step of all answers."""
        if self._pieces:
            self._advance(self._pieces.popleft())
        for number in range(len(self._decoding) - 1, -1, -1):
            row = self._decoding[number]
            error = reason_to_end(row.running.turn)
            if error is not None:
                self._leave(number)
                row.running.turn.emit(Failed(error))
        if self._decoding:
            self._decode()

    def _advance(self, running: _Running) -> None:
        """Run a turn up to its next pause; what fails is the turn's own."""
        error: BaseException | None = reason_to_end(running.turn)
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
        choice = row.sampler.choose(logits)
        row.token = choice.token
        return row.decoding.answer.add(choice, self._ends)


def _steps(model: Any, tokenizer: Any, turn: Turn) -> Steps:
    """The steps of a turn, of which none is run yet."""
    return (yield from TurnPasses(model, tokenizer, turn).steps())


def end_tokens(given: int | list[int] | None, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: those of the generation's configuration, or else the tokenizer's."""
    ends = tokenizer.eos_token_id if given is None else given
    return {*ends} if isinstance(ends, list) else {ends}

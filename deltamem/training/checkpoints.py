"""When a training saves a checkpoint besides transformers' own strategies: after some minutes, and when it is told to stop."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SaveByTime(TrainerCallback):
    """Saves a checkpoint whenever so many minutes have passed since the last one, and at the end of the training."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._saved = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint if it is time, on any process: all take part in saving."""
        due = time.monotonic() - self._saved >= 60 * self.minutes
        if largest_of_all(int(due), args) or state.global_step >= state.max_steps:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock anew, whatever the reason of the checkpoint."""
        self._saved = time.monotonic()


class StopOnSignal(TrainerCallback):
    """Ends a training on Ctrl-C (SIGINT) or SIGTERM within its `with` block: the running step ends, and a checkpoint is saved.

    A second signal of the same kind acts as it does outside the block: it stops at once. What was ignored stays ignored.

    Args:
        signal: the number of the signal that came, on any process; 0 if none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> StopOnSignal:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop behind this step if a signal came: with its loss logged, as the resumed training begins to count anew."""
        self.signal = largest_of_all(self.signal, args)
        if self.signal:
            control.should_training_stop = control.should_save = control.should_log = True
            control.should_evaluate = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that loads data: it ends with its parent
        self.signal = number
        signal.signal(number, self._before[number])
        # Not print: a signal may come in the middle of another one.
        os.write(2, b"\nEnding this step, then saving a checkpoint. Another Ctrl-C stops at once.\n")


def largest_of_all(number: int, args: TrainingArguments) -> int:
    """The largest of the numbers that all processes pass; each of them must call this."""
    if args.world_size == 1:
        return number
    largest = torch.tensor(number, dtype=torch.long, device=args.device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return int(largest)

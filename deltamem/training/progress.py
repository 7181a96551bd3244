"""What a training command prints: what is to come, a line for every log, and the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from deltamem.io.printable import printable
from deltamem.io.progress import duration
from deltamem.training.batching import episodes_per_step
from deltamem.training.throughput import tokens_in

SAMPLE = 32  # episodes whose tokens are counted to estimate those of all
# What an evaluation takes is no result of it.
NO_RESULTS = ("_runtime", "_per_second", "_time")


def say(text: str) -> None:
    """Print a line, however long it is, and even if a file or a pipe collects the output."""
    Console().print(printable(text), soft_wrap=True, highlight=False, markup=False)


def trainable(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def print_lines(trainer: Trainer) -> None:
    """Let a trainer print `ProgressLines` in place of transformers' dictionaries."""
    silence(trainer)
    chats = trainer.train_dataset
    places = range(min(SAMPLE, len(chats)))
    tokens, _ = tokens_in(trainer.data_collator([chats[place] for place in places]))
    trainer.add_callback(ProgressLines(float(tokens) / len(places)))


def silence(trainer: Trainer) -> None:
    """Let a trainer print nothing by itself."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)


class ProgressLines(TrainerCallback):
    """Prints a line at the start, for each log, and at the end.

    Args:
        tokens: mean number of tokens of an episode.
    """

    def __init__(self, tokens: float) -> None:
        self.tokens = tokens
        self._first: tuple[int, float] | None = None  # the step and the time of the first log

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Say how much there is to do."""
        self._first = None
        if not state.is_world_process_zero:
            return
        left, size = state.max_steps - state.global_step, episodes_per_step(args)
        whence = f" from step {state.global_step:,} on" if state.global_step else ""
        trained = 0 if model is None else trainable(model)
        say(
            f"Training {trained:,} parameters{whence}: {left:,} steps of {size:,} episodes, which are {left * size:,} episodes "
            f"and about {rounded(left * size * self.tokens)} tokens. Learning rate {args.learning_rate:g}."
        )
        if args.save_minutes is not None:
            say(f"A checkpoint every {args.save_minutes:g} minutes in {args.output_dir}; Ctrl-C saves one and stops.")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the losses, an evaluation, or the end."""
        if logs is None or not state.is_world_process_zero:
            return
        if "loss" in logs:
            say(loss_line(logs, state.global_step, state.max_steps, self._seconds_left(state)))
        elif "train_runtime" in logs:
            time_taken = duration(logs["train_runtime"])
            say(f"Step {state.global_step:,} of {state.max_steps:,} after {time_taken}; mean loss {logs['train_loss']:.3f}.")
        else:
            say(evaluation_line(logs, state.global_step))

    def _seconds_left(self, state: TrainerState) -> float | None:
        """By the time since the first log, which leaves out what only the first step takes; None at the first log."""
        if self._first is None:
            self._first = state.global_step, time.monotonic()
            return None
        step, begun = self._first
        return (time.monotonic() - begun) / (state.global_step - step) * (state.max_steps - state.global_step)


def loss_line(logs: Mapping[str, float], step: int, steps: int, seconds_left: float | None) -> str:
    """A log of the losses as a line: the step, the loss and what it is the sum of, the speed, the time left."""
    parts = {name.removeprefix("loss_").replace("_", " "): value for name, value in logs.items() if name.startswith("loss_")}
    summed = " = " + " + ".join(f"{name} {value:.3f}" for name, value in parts.items()) if parts else ""
    columns = [f"step {step:>{len(f'{steps:,}')},} of {steps:,}", f"loss {logs['loss']:.3f}{summed}"]
    if "tokens_per_second" in logs:
        columns.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if seconds_left is not None and step < steps:
        columns.append(f"{duration(seconds_left)} left")
    return "   ".join(columns)


def evaluation_line(logs: Mapping[str, float], step: int) -> str:
    """A log of an evaluation as a line."""
    results = (
        f"{name.removeprefix('eval_').replace('_', ' ')} {value:.3f}"
        for name, value in logs.items()
        if name.startswith("eval_") and not name.endswith(NO_RESULTS)
    )
    return f"evaluation at step {step:,}   " + "   ".join(results)


def rounded(number: float) -> str:
    """A large number with two digits, such as 2.9 million."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{float(f'{number:.2g}'):,.0f}"

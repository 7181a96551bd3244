"""Runs the training of a command: prints its lines, stops on a signal, and says how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from peft import PeftModel
from transformers import Trainer

from deltamem.training.checkpoints import StopOnSignal
from deltamem.training.options import TrainingOptions
from deltamem.training.progress import print_lines, say

GO_ON = ("--resume_from_checkpoint", "true")


def train(trainer: Trainer, options: TrainingOptions, command: Sequence[str]) -> None:
    """Train to the end.

    Args:
        trainer: made with `options`.
        options: say which checkpoint to go on from, if any.
        command: the words of the command line, to be shown.

    Raises:
        SystemExit: Ctrl-C or SIGTERM ended the training earlier, with a checkpoint; the status is 128 plus the signal's number.
    """
    print_lines(trainer)
    with StopOnSignal() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=options.checkpoint())
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if not stop.signal or step >= steps:
        return
    if trainer.is_world_process_zero():
        folder = f"{options.training.output_dir}/checkpoint-{step}"
        words = for_others(command, options.training.hub_token)
        say(f"Stopped at step {step:,} of {steps:,}; {folder} has the adapter so far. To go on:")
        say(shlex.join([*words, *(() if options.checkpoint() is True else GO_ON)]))
    raise SystemExit(128 + stop.signal)


def suit_learning_rate(options: TrainingOptions, model: PeftModel) -> None:
    """Lower a learning rate that the command line does not set to what suits the backbone; print that, or that it is high."""
    advice = options.suit_learning_rate(model)
    if advice is not None and options.training.process_index == 0:
        say(advice)


def for_others(arguments: Sequence[str], token: str | None) -> list[str]:
    """Arguments as a screen or a model card may show them: with the Hub token replaced."""
    return [argument if token is None else argument.replace(token, "TOKEN") for argument in arguments]

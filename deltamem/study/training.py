"""Trains one adapter of a study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from deltamem.study.options import Options, check_names, check_types, field_names
from deltamem.training.data import FactDataset, WithSystemPrompt
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.facts import FactEpisodeConfig
from deltamem.training.trainer import DeltaMemTrainer, DeltaMemTrainingArguments

LOGS = 20  # number of logs per training; the last one is the final loss
# Options that the study sets itself.
DECIDED = ("output_dir", "seed", "data_seed", "resume_from_checkpoint", "logging_steps", "any_word")
# Off in a study, unless the grid sets them.
QUIET: Options = {
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "memory_statistics": False,
}


@dataclass(frozen=True)
class AskedQuestions:
    """How training asks for the facts of a history.

    Args:
        questions: maximum questions after each history.
        answer_only: train on the answer without the header of its turn.
    """

    questions: int = 1
    answer_only: bool = False


@dataclass(frozen=True)
class StudyTraining:
    """A training as declared in a grid.

    Args:
        given: fields of `DeltaMemTrainingArguments`, `FactEpisodeConfig` and `AskedQuestions`.

    Raises:
        ValueError: a name is unknown, or a value is not accepted.
    """

    given: Options

    def __post_init__(self) -> None:
        kinds = (AskedQuestions, FactEpisodeConfig, DeltaMemTrainingArguments)
        check_names("training", self.given, [name for name in field_names(*kinds) if name not in DECIDED])
        for kind in kinds:
            check_types("training", self.given, kind)
        if self.asked.questions < 1:
            raise ValueError(f"training.questions: {self.asked.questions} is not accepted; give 1 or more")
        _ = self.facts
        self.arguments(Path(), seed=0)

    @property
    def asked(self) -> AskedQuestions:
        """The options for asking facts."""
        return AskedQuestions(**self._of(AskedQuestions))

    @property
    def facts(self) -> FactEpisodeConfig:
        """The configuration of the episodes."""
        return FactEpisodeConfig(**self._of(FactEpisodeConfig))

    @property
    def resolved(self) -> Options:
        """All settings, including defaults, except for the trainer's own defaults."""
        return {**self.given, **asdict(self.asked), **asdict(self.facts)}

    def check_device(self, device: str) -> None:
        """Check that training would run on a device.

        Raises:
            ValueError: transformers' Trainer would choose another device; the message names it.
        """
        there = self.arguments(Path(), 0, device).device
        if torch.device(device) not in (there, torch.device(there.type)):
            raise ValueError(
                f"--device {device!r} is not accepted: transformers would train this grid on {there}. Leave training.use_cpu "
                "out of the grid; CUDA_VISIBLE_DEVICES=1 makes the second GPU the first"
            )

    def arguments(self, folder: Path, seed: int, device: str | None = None) -> DeltaMemTrainingArguments:
        """Create the trainer's arguments; by default, nothing is saved.

        Args:
            folder: the trainer's output folder.
            seed: seeds the episodes.
            device: the device to run on; None to let transformers choose.
        """
        placed = {} if device is None else {"use_cpu": torch.device(device).type == "cpu"}
        options = QUIET | placed | self._of(DeltaMemTrainingArguments)
        steps = options.get("max_steps", DeltaMemTrainingArguments.max_steps)
        return DeltaMemTrainingArguments(output_dir=str(folder), seed=seed, logging_steps=max(1, steps // LOGS), **options)

    def _of(self, kind: type) -> Options:
        names = {field.name for field in fields(kind)}
        return {name: value for name, value in self.given.items() if name in names}


def train(
    model: PeftModel,
    tokenizer: Any,
    training: StudyTraining,
    system: str | None,
    arguments: DeltaMemTrainingArguments,
    step: Callable[[float], None],
) -> float:
    """Train an adapter on generated facts.

    Args:
        model: has a new adapter.
        tokenizer: the model's.
        training: the training's options.
        system: the system prompt of all chats; None for the chat template's own.
        arguments: the trainer's arguments for this training.
        step: called with the fraction of the training done.

    Returns:
        The mean loss over the last logging interval.
    """
    encoder = EpisodeEncoder(tokenizer, write=model.active_peft_config.write, answer_only=training.asked.answer_only)
    chats: Any = FactDataset(arguments.episodes, arguments.seed, training.facts, training.asked.questions)
    trainer = DeltaMemTrainer(
        model,
        arguments,
        train_dataset=chats if system is None else WithSystemPrompt(chats, system),
        data_collator=EpisodeCollator(encoder),
        callbacks=[Steps(step)],
    )
    trainer.remove_callback(PrinterCallback)  # a library prints nothing
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1])


class Steps(TrainerCallback):
    """Reports the progress of a training."""

    def __init__(self, step: Callable[[float], None]) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the fraction of steps done."""
        self.step(state.global_step / state.max_steps)

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

LOGS = 20  # over a training; the last one is its final loss
# What the study itself decides.
DECIDED = ("output_dir", "seed", "data_seed", "resume_from_checkpoint", "logging_steps", "any_word")
# Of no use within a study, unless a grid says otherwise.
QUIET: Options = {
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "memory_statistics": False,
}


@dataclass(frozen=True)
class AskedQuestions:
    """How the facts of a history are asked for in training.

    Args:
        questions: after each history, at most.
        answer_only: train on the answer without the header of its turn.
    """

    questions: int = 1
    answer_only: bool = False


@dataclass(frozen=True)
class StudyTraining:
    """A training as a grid declares it.

    Args:
        given: fields of `DeltaMemTrainingArguments`, `FactEpisodeConfig` and `AskedQuestions`.

    Raises:
        ValueError: an unknown name, or a value that is not accepted.
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
        """How facts are asked for."""
        return AskedQuestions(**self._of(AskedQuestions))

    @property
    def facts(self) -> FactEpisodeConfig:
        """What the episodes look like."""
        return FactEpisodeConfig(**self._of(FactEpisodeConfig))

    @property
    def resolved(self) -> Options:
        """All of its settings, those left to their defaults among them, but for the trainer's own defaults."""
        return {**self.given, **asdict(self.asked), **asdict(self.facts)}

    def check_device(self, device: str) -> None:
        """Make sure that it runs there.

        Raises:
            ValueError: transformers' Trainer would put it somewhere else; says where.
        """
        there = self.arguments(Path(), 0, device).device
        if torch.device(device) not in (there, torch.device(there.type)):
            raise ValueError(
                f"--device {device!r} is not accepted: transformers would train this grid on {there}. Leave training.use_cpu "
                "out of the grid; CUDA_VISIBLE_DEVICES=1 makes the second GPU the first"
            )

    def arguments(self, folder: Path, seed: int, device: str | None = None) -> DeltaMemTrainingArguments:
        """The trainer's arguments; it leaves nothing in the folder, unless told to save.

        Args:
            folder: for what the trainer might save.
            seed: of the episodes.
            device: where it is to run; wherever transformers puts it if None.
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
        model: with a new adapter.
        tokenizer: the model's.
        training: how.
        system: the system prompt of all chats; the chat template's own if None.
        arguments: of that training.
        step: called with the share of the training that is done.

    Returns:
        The mean loss of the last part of the training.
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
    """Tells how far a training is."""

    def __init__(self, step: Callable[[float], None]) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After every step."""
        self.step(state.global_step / state.max_steps)

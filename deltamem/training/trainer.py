"""DeltaMemTrainer: δ-mem's write and read passes on transformers' Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from deltamem.hub.card import write_card
from deltamem.model import DeltaMemModel
from deltamem.training.batching import ChatTrainer, episodes_per_step
from deltamem.training.binding import binding
from deltamem.training.costs import Amounts, Costs, TeacherTokens, Weighing, amounts, mean_costs
from deltamem.training.loss import EpisodeLoss, WriteFrom, views_in
from deltamem.training.loss_parts import WRITE_PENALTY, LossParts
from deltamem.training.refused import refuse_absent, refuse_given
from deltamem.training.statistics import memory_statistics
from deltamem.training.throughput import Throughput
from deltamem.training.views import ALL_VIEWS

UNRELATED = "unrelated"
PLACES = {name: place for place, name in enumerate(ALL_VIEWS)}
SAVE_MINUTES, SAVE_STEPS = 10.0, 500  # without and with --save_strategy steps


@dataclass
class DeltaMemTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the paper's recipe as defaults, and δ-mem's own options.

    Args:
        save_minutes: save a checkpoint every so many minutes; 10 if no other strategy is given, which `save_strategy`,
            `save_steps` and `load_best_model_at_end` are, otherwise None.
        write_penalty: weight of `(mean β - write_target)²` in the loss, where β are the write gates of the write pass.
        write_target: the mean write gate without a penalty.
        write_chunk_tokens: write long histories in chunks of this many tokens, carrying the memory over from each to the next.
        gradient_chunks: how many chunks at the end of a history receive gradients.
        answer_weight, teacher_weight, hidden_weight, teacher_tokens: see `Weighing`.
        write_from: see `EpisodeLoss`.
        memory_statistics: log how far the gates open, and the norms of states and corrections.

    Raises:
        ValueError: a number is out of range, or an option would have no effect.
    """

    learning_rate: float = field(default=2e-4, metadata={"help": "The peak learning rate."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Schedule of the learning rate: cosine, linear, constant, ..."}
    )
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps until the learning rate peaks; below 1, a share of all steps."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of the optimizer."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Episodes per batch on each device."})
    max_steps: int = field(
        default=70, metadata={"help": "Optimizer steps; -1 to use --num_train_epochs instead, except with facts."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "Order of the episodes: group_by_length (batches of similar length), random or sequential."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave it off: the collator reads columns that the model does not take."}
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Steps between two logs of the losses; below 1, a share of all steps."}
    )
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step, too."})
    eval_steps: float | None = field(
        default=100,
        metadata={"help": "Steps between two evaluations with --eval_strategy steps; below 1, a share of all steps."},
    )
    save_minutes: float | None = field(
        default=None,
        metadata={"help": f"Minutes between two checkpoints; {SAVE_MINUTES:g} if nothing else says when to save."},
    )
    save_strategy: str | None = field(
        default=None, metadata={"help": "Save checkpoints by steps, epoch, best or no; by time if not given."}
    )
    save_steps: float | None = field(
        default=None,
        metadata={
            "help": f"Steps between two checkpoints, {SAVE_STEPS} with --save_strategy steps; below 1, a share of all steps."
        },
    )
    save_total_limit: int | None = field(default=3, metadata={"help": "How many checkpoints to keep; the oldest are deleted."})
    write_penalty: float = field(default=0.01, metadata={"help": "Weight of (mean write gate - write_target)^2."})
    write_target: float = field(default=0.05, metadata={"help": "The mean write gate without a penalty."})
    answer_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy of the answers."})
    teacher_weight: float = field(
        default=0.0, metadata={"help": "Weight of KL(teacher || model), to the bare backbone with the history in context."}
    )
    hidden_weight: float = field(
        default=0.0, metadata={"help": "Weight of the L1 distance between every layer's hidden states and that teacher's."}
    )
    teacher_tokens: TeacherTokens = field(
        default="all",
        metadata={"help": "Where to follow the teacher: all tokens, answers, or all, weighted by how the history changed it."},
    )
    write_from: WriteFrom = field(
        default="memory",
        metadata={"help": "Hidden states to write: the memory's, as in use, or the bare backbone's, which is much faster."},
    )
    write_chunk_tokens: int | None = field(
        default=None, metadata={"help": "Write the history in chunks of this many tokens, each in a fresh context."}
    )
    gradient_chunks: int | None = field(
        default=None, metadata={"help": "Number of chunks at the end of the history that receive gradients; all if not given."}
    )
    memory_statistics: bool = field(
        default=True, metadata={"help": "Log mean gates, norms of states, and the relative size of corrections."}
    )

    def __post_init__(self) -> None:
        refuse_given(self)
        self._choose_when_to_save()
        super().__post_init__()
        refuse_absent(self)
        for name in ("write_chunk_tokens", "gradient_chunks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is not accepted; give a whole number of at least 1, or leave it out")
        if self.gradient_chunks is not None and self.write_chunk_tokens is None:
            raise ValueError("gradient_chunks counts chunks of write_chunk_tokens; give these, too")
        if self.write_from == "backbone" and self.write_chunk_tokens is not None:
            raise ValueError("write_from='backbone' writes a history at once; leave out write_chunk_tokens and gradient_chunks")
        for name in ("answer_weight", "teacher_weight", "hidden_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} is not accepted; give a finite number of at least 0")
        if not (self.answer_weight or self.teacher_weight or self.hidden_weight):
            raise ValueError("answer_weight=0 and teacher_weight=0 leave nothing to learn; give one of them")

    def _choose_when_to_save(self) -> None:
        """Save by steps if something that needs steps is given, and by time if nothing is."""
        if self.save_minutes is not None and not self.save_minutes > 0:
            raise ValueError(f"save_minutes={self.save_minutes} is not accepted; give a number above 0, or leave it out")
        if self.save_strategy is None and (self.save_steps is not None or self.load_best_model_at_end):
            self.save_strategy = "steps"
        if self.save_strategy is None:
            self.save_strategy = "no"
            self.save_minutes = SAVE_MINUTES if self.save_minutes is None else self.save_minutes
        if self.save_steps is None:
            self.save_steps = SAVE_STEPS

    def __getstate__(self) -> dict[str, Any]:
        """The state pickled into every checkpoint's training_args.bin: everything except the Hub token."""
        return {**vars(self), "hub_token": None}

    @property
    def episodes(self) -> int:
        """Number of episodes that training takes, over all processes."""
        return self.max_steps * episodes_per_step(self)

    @property
    def weighing(self) -> Weighing:
        """The weights of the terms of the loss."""
        weights = self.answer_weight, self.teacher_weight, self.hidden_weight
        return Weighing(*weights, self.teacher_tokens, self.label_smoothing_factor)


class DeltaMemTrainer(ChatTrainer):
    """Trains the memory of a `get_peft_model(model, DeltaMemConfig(...))` on batches of an `EpisodeCollator`.

    Besides the loss, evaluation reports `recall`, the share of answers whose every token is the model's argmax, and `nats`, the
    mean cost per answer token. With `in_views_and_controls(chats, ...)` as `eval_dataset`, it reports them for every view and
    control, plus `specific` and `bound` (see `binding`) and, if the view "unrelated" is included, `harm`: how far a filled
    memory changes the bare backbone's predictions for unrelated text, KL(backbone || model) in nats per token.
    """

    def __init__(self, model: PeftModel, *args: Any, **kwargs: Any) -> None:
        if not isinstance(getattr(model, "base_model", None), DeltaMemModel):
            raise ValueError(
                f"DeltaMemTrainer trains a model with a δ-mem adapter, got {type(model).__name__}; make one with "
                "get_peft_model(model, DeltaMemConfig(...))"
            )
        super().__init__(model, *args, metrics=recall, **kwargs)
        self._newest: dict[str, Tensor] | None = None
        self._nats: dict[str, Any] = {}
        self._throughput = Throughput()
        self._parts = LossParts()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the batches of one optimizer step, and the totals over them that `compute_loss` needs.

        Returns:
            The batches, and for each of `ALL_VIEWS` their numbers of reads, answer tokens and taught tokens, `[views, 3]`; with
            `average_tokens_across_devices`, the mean over the processes, whose gradients are averaged.
        """
        batches, _ = super().get_batch_samples(*args, **kwargs)
        if not batches:
            return batches, None
        self._parts.begin_step()
        for batch in batches:
            self._throughput.count(batch)
        counted = torch.stack([self._amounts(batch) for batch in batches]).sum(0).to(self.args.device)
        if self.args.average_tokens_across_devices:
            counted = self.accelerator.reduce(counted, reduction="mean")
        return batches, counted

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Write the chats to empty memories, then read them: the mean over the trained tokens, plus the write penalty.

        Each view is weighted by its share of the reads. Within a view, each trained token of a step has the same weight, in
        whichever batch it is. A batch's write penalty is weighted by the batch's share of the reads.

        Args:
            model: `self.model`, or its wrapper.
            inputs: made by an `EpisodeCollator`.
            return_outputs: also return the costs of each view's reads, by the view's name.
            num_items_in_batch: totals of the whole step from `get_batch_samples`, `[views, 3]`; None for those of this batch.
        """
        counted = self._amounts(inputs) if num_items_in_batch is None else num_items_in_batch
        every = counted[:, 0].sum()
        episodes = self._episode_loss(model)
        costs = episodes(model, inputs)
        parts = {
            f"{name}_{term}": part for name, cost in costs.items() for term, part in self._shares(name, cost, counted, every)
        }
        if episodes.write_gates and self.args.write_penalty:
            device = next(iter(parts.values())).device
            gate = torch.stack(episodes.write_gates).mean().to(device)
            share = len(inputs["view"]) / every
            parts[WRITE_PENALTY] = share * self.args.write_penalty * (gate - self.args.write_target) ** 2
        loss = torch.stack([*parts.values()]).sum()
        if model.training:
            self._newest = inputs
            self._parts.add(parts)
        return (loss, costs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the loss of a batch, the `_counts` of each read, `[reads, 3]`, and the reads' views."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, costs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, torch.cat([_counts(cost) for cost in costs.values()]), inputs["view"]

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as the Trainer does, and keep the cost of every read for `evaluate`."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if output.predictions is not None:
            self._nats[metric_key_prefix] = _gathered(output.predictions)[:, 2]
        return output

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as the Trainer does; for views and controls, add `specific`, `bound` and `harm` (see the class)."""
        metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(sets, dict):
            names = {name: f"{metric_key_prefix}_{name}" for name in sets}
            figures = binding({name: self._nats[key] for name, key in names.items() if key in self._nats})
            if UNRELATED in sets:
                figures["harm"] = metrics[f"{metric_key_prefix}_{UNRELATED}_loss"]
            figures = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
            if figures:
                self.log(figures)
            metrics |= figures
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does; with a training loss, add its parts, the throughput and the memory's statistics."""
        if "loss" in logs:
            parts = self._parts.figures(self.args.device, partial(self.accelerator.reduce, reduction="mean"))
            logs = {**logs, **parts, **self._throughput.figures()}
            if self.args.memory_statistics and self._newest is not None:
                logs |= memory_statistics(self._episode_loss(self.model_wrapped), self._newest)
        super().log(logs, *args, **kwargs)

    def create_model_card(
        self, language: str | None = None, license: str | None = None, tags: str | list[str] | None = None, **others: Any
    ) -> None:
        """Write the adapter's own card, as `push_to_hub` does, instead of the Trainer's.

        Args:
            language, license, tags: the card's metadata.
            others: the Trainer's other arguments; ignored, since the card already describes the adapter and its training.
        """
        if self.is_world_process_zero():
            given = {"language": language, "license": license, "tags": [tags] if isinstance(tags, str) else tags}
            metadata = {name: value for name, value in given.items() if value}
            config = self.accelerator.unwrap_model(self.model).active_peft_config
            write_card(Path(self.args.output_dir), config, self.hub_model_id, **metadata)

    def _episode_loss(self, model: nn.Module) -> EpisodeLoss:
        adapted, args = self.accelerator.unwrap_model(model), self.args
        return EpisodeLoss(adapted, self.args.weighing, args.write_from, args.write_chunk_tokens, args.gradient_chunks)

    def _amounts(self, batch: dict[str, Any]) -> Tensor:
        """Count a batch's reads, answer tokens and taught tokens for each of `ALL_VIEWS`: `[views, 3]`."""
        counted = torch.zeros(len(ALL_VIEWS), 3, dtype=torch.float32, device=batch["view"].device)
        for name, view in views_in(batch).items():
            reads, answers, taught = amounts(batch[name], view, self.args.weighing)
            counted[PLACES[name]] = torch.stack([answers.new_tensor(reads), answers, taught])
        return counted

    def _shares(self, name: str, costs: Costs, counted: Tensor, every: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A view's contributions, by their `TERMS`, to the loss of a step that has `every` reads in total."""
        reads, answers, taught = counted[PLACES[name]]
        means = mean_costs(costs, Amounts(reads, answers, taught), ALL_VIEWS[name], self.args.weighing)
        return ((term, mean * reads / every) for term, mean in means.items())


def recall(prediction: EvalPrediction) -> dict[str, float]:
    """The share of right answers, and the mean cost per answer token in nats, from the reads' `_counts`, `[reads, 3]`."""
    right, asked, nats = _gathered(prediction.predictions).T
    return {"recall": float(right.sum() / asked.sum()), "nats": float(nats.mean())} if asked.sum() else {}


def _gathered(predictions: Any) -> Any:
    """Concatenate the `_counts` of all reads, `[reads, 3]`: the Trainer passes an array, or a list with one per batch."""
    return np.concatenate(predictions) if isinstance(predictions, list) else predictions


def _counts(costs: Costs) -> Tensor:
    """For each read, the numbers of right answers and of all answers, and the mean cost per answer token: `[reads, 3]`."""
    return torch.stack([costs.right, costs.asked, costs.each], dim=1).float()

"""DeltaMemTrainer: the write pass and the read pass of δ-mem, on transformers' Trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from deltamem.model import DeltaMemModel
from deltamem.training.episodes import IGNORED


@dataclass
class DeltaMemTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the defaults of the paper's recipe, and what δ-mem adds to it.

    Args:
        write_penalty: weight of `(mean β - write_target)²` in the loss, β being the write gates of the write pass.
        write_target: the mean write gate that costs nothing.
    """

    learning_rate: float = field(default=2e-4)
    lr_scheduler_type: str = field(default="cosine")
    warmup_steps: float = field(default=0.1)
    weight_decay: float = field(default=0.0)
    per_device_train_batch_size: int = field(default=32)
    max_steps: int = field(default=70)
    remove_unused_columns: bool = field(default=False)
    prediction_loss_only: bool = field(default=True)
    write_penalty: float = field(default=0.01, metadata={"help": "Weight of (mean write gate - write_target)^2."})
    write_target: float = field(default=0.05, metadata={"help": "The mean write gate that costs nothing."})


class DeltaMemTrainer(Trainer):
    """Trains the memory of a `get_peft_model(model, DeltaMemConfig(...))` on batches of an `EpisodeCollator`."""

    def __init__(self, model: PeftModel, *args: Any, **kwargs: Any) -> None:
        if not isinstance(getattr(model, "base_model", None), DeltaMemModel):
            raise ValueError(
                f"DeltaMemTrainer trains a model with a δ-mem adapter, got {type(model).__name__}; make one with "
                "get_peft_model(model, DeltaMemConfig(...))"
            )
        super().__init__(model, *args, **kwargs)
        # The loss is the mean over each batch, for the Trainer to divide over gradient accumulation.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Write the history to an empty memory, then read it: cross-entropy of the answers plus the write penalty."""
        tuner = self.accelerator.unwrap_model(model).base_model
        state = tuner.new_memory(inputs["input_ids"].shape[0])
        segment_ids = inputs.get("write_segment_ids")
        with tuner.memory(state, segment_ids=segment_ids, detach=False) as written:
            model(
                input_ids=inputs["write_input_ids"],
                attention_mask=inputs["write_attention_mask"],
                use_cache=False,
                logits_to_keep=_last_positions(inputs["write_input_ids"], 1),
            )
        labels = inputs["labels"]
        targets = int((labels != IGNORED).any(0).long().argmax())  # the first column that is trained on
        with tuner.memory(state, write=False):
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
                logits_to_keep=_last_positions(labels, labels.shape[1] - targets + 1),
            )
        predicted = outputs.logits[:, :-1].float().flatten(0, 1)
        loss = F.cross_entropy(predicted, labels[:, targets:].flatten(), ignore_index=IGNORED)
        if written.write_gates:
            gate = torch.stack(written.write_gates).mean().to(loss.device)
            loss = loss + self.args.write_penalty * (gate - self.args.write_target) ** 2
        return (loss, {"loss": loss}) if return_outputs else loss


def _last_positions(ids: Tensor, count: int) -> Tensor:
    """The last positions of `[batch, tokens]`, for `logits_to_keep`.

    As indices, not as a number: a slice of the hidden states is not contiguous, and the vocabulary's matrix would then be
    copied for every row.
    """
    return torch.arange(ids.shape[1] - count, ids.shape[1], device=ids.device)

"""What an episode costs: the history is written, the questions are read, and the answers compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from deltamem.decoder import last_place
from deltamem.state import DeltaMemState
from deltamem.training.episodes import IGNORED
from deltamem.training.views import View

Batch = dict[str, Tensor]
WRITTEN = ("write_input_ids", "write_attention_mask", "write_segment_ids")


@dataclass(frozen=True)
class Answers:
    """How the answers of a read pass were predicted.

    Args:
        total: what all tokens that are trained on cost together.
        tokens: how many they are.
        right, asked: `[batch]`, for each row how many of its answers have the likeliest token at every place, and how many
            there are.
    """

    total: Tensor
    tokens: Tensor
    right: Tensor
    asked: Tensor

    @property
    def loss(self) -> Tensor:
        """The mean over the tokens."""
        return self.total / self.tokens


def trained(batch: Batch, view: View) -> Tensor:
    """Which tokens of a read pass are compared with something: `[batch, tokens]`."""
    if view.target == "backbone":
        return batch["attention_mask"].bool()
    return F.pad(batch["labels"][:, 1:] != IGNORED, (1, 0))  # nothing predicts the first token


def answer_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Answers:
    """Read the questions of a batch and compare the answers, by cross-entropy.

    Args:
        model: any causal model; its memory, if it has one, is the caller's to open.
        batch: `input_ids`, `attention_mask` and `labels`, `[batch, tokens]`.
        label_smoothing: this share of every target is spread evenly over the vocabulary.
    """
    labels = batch["labels"]
    # Only where some row's next token is trained on: the vocabulary's matrix is a good part of a small model's work.
    predicting = (labels[:, 1:] != IGNORED).any(0).nonzero().squeeze(1)
    logits = _read(model, batch, predicting)  # [batch, predicting, vocabulary]
    targets = labels[:, predicting + 1]
    total = F.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return Answers(total, (targets != IGNORED).sum(), *_counted(logits.detach().argmax(-1), targets, predicting))


def backbone_loss(model: nn.Module, adapted: PeftModel, batch: Batch) -> Answers:
    """How far a model is from its bare backbone: KL(backbone || model) of all tokens read. No answer is right or wrong.

    Args:
        model: the model to call, which may wrap `adapted`, whose adapter can be switched off.
        batch: `input_ids` and `attention_mask`, `[batch, tokens]`.
    """
    real = batch["attention_mask"].bool()
    places = torch.arange(real.shape[1], device=real.device)
    with torch.no_grad(), adapted.disable_adapter():
        expected = _read(model, batch, places).float().log_softmax(-1)
    predicted = _read(model, batch, places).float().log_softmax(-1)
    divergence = F.kl_div(predicted, expected, log_target=True, reduction="none").sum(-1)  # [batch, tokens]
    nothing = torch.zeros(len(real), dtype=torch.long, device=real.device)
    return Answers(divergence[real].sum(), real.sum(), nothing, nothing)


@dataclass
class EpisodeLoss:
    """Writes and reads episodes in their views.

    Args:
        adapted: the model with the δ-mem adapter.
        write_chunk_tokens: the history is written in chunks of so many tokens, each in a context of its own; None for at once.
        gradient_chunks: gradients flow through so many chunks at the end of the history; None for all.
        label_smoothing: this share of every target of an answer is spread evenly over the vocabulary.
        after_chunk: called with the memory after each chunk; None for nothing.
        write_gates: the mean write gate β of every pass that wrote with gradients, filled in.
    """

    adapted: PeftModel
    write_chunk_tokens: int | None = None
    gradient_chunks: int | None = None
    label_smoothing: float = 0.0
    after_chunk: Callable[[DeltaMemState], None] | None = None
    write_gates: list[Tensor] = field(default_factory=list)

    def __call__(self, model: nn.Module, batch: Batch, view: View) -> Answers:
        """What a batch of episodes costs that are all in one view.

        Args:
            model: the model to call: `adapted`, or what wraps it.
            batch: one view's part of what an `EpisodeCollator` makes.
            view: the view.
        """
        state = self.adapted.new_memory(len(batch["input_ids"]))
        if view.filled:
            self.fill(model, batch, state)
        with self.adapted.memory(state, write=view.write) as block:
            if view.target == "backbone":
                return backbone_loss(model, self.adapted, batch)
            answers = answer_loss(model, batch, self.label_smoothing)
        self.write_gates += block.write_gates
        return answers

    def fill(self, model: nn.Module, batch: Batch, state: DeltaMemState) -> None:
        """Write the histories of a batch to a memory that has a row for each."""
        tokens = batch["write_input_ids"].shape[1]
        size = min(self.write_chunk_tokens or tokens, tokens)
        # The histories end together, so that the first chunk is the one that may be short.
        ends = [*reversed(range(tokens, 0, -size))]
        for left, end in zip(reversed(range(len(ends))), ends, strict=True):
            chunk = slice(max(end - size, 0), end)
            linked = torch.is_grad_enabled() and (self.gradient_chunks is None or left < self.gradient_chunks)
            with torch.set_grad_enabled(linked):
                self._write(
                    model, {name: tensor[:, chunk] for name, tensor in batch.items() if name in WRITTEN}, state, left > 0
                )
            if self.after_chunk is not None:
                self.after_chunk(state)

    def _write(self, model: nn.Module, batch: Batch, state: DeltaMemState, goes_on: bool) -> None:
        segment_ids = batch.get("write_segment_ids")
        keep_open = goes_on and segment_ids is not None
        with self.adapted.memory(state, segment_ids=segment_ids, keep_open=keep_open, detach=False) as block:
            ids = batch["write_input_ids"]
            mask = batch["write_attention_mask"]
            model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=last_place(ids))
        self.write_gates += block.write_gates


def _read(model: nn.Module, batch: Batch, places: Tensor) -> Tensor:
    """Logits of the given places: `[batch, places, vocabulary]`."""
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=places)
    logits: Tensor = output.logits
    return logits


def _counted(predicted: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the right answers and all answers, an answer being a run of targets that stand next to each other.

    Args:
        predicted, targets: `[batch, places]`. places: `[places]`, where they stand, ascending.
    """
    labelled = targets != IGNORED
    before = F.pad(labelled[:, :-1] & (places.diff() == 1), (1, 0))
    answer = (labelled & ~before).cumsum(1)  # the number of the answer that a target belongs to, from 1
    asked = answer[:, -1] if answer.shape[1] else torch.zeros(len(targets), dtype=torch.long, device=targets.device)
    wrong = labelled & (predicted != targets)
    spoilt = torch.zeros(len(targets), answer.shape[1] + 1, dtype=torch.bool, device=targets.device)
    spoilt.scatter_(1, torch.where(wrong, answer, 0), wrong)
    return asked - spoilt[:, 1:].sum(1), asked

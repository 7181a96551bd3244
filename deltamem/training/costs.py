"""The cost of read passes: cross-entropy of the answers, and divergence from teachers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem.training.reading import Reader
from deltamem.training.scripts import IGNORED
from deltamem.training.views import View
from deltamem.training.writing import Batch

TeacherTokens = Literal["all", "answers", "changed"]
TERMS = ("answers", "teacher", "hidden")  # what a view's loss is the sum of


class Weighing(NamedTuple):
    """Weights of the terms of the loss of a read pass.

    Args:
        answers: weight of the cross-entropy of the labelled tokens.
        teacher: weight of KL(teacher || model); the teacher is the bare backbone with the whole chat in its context.
        hidden: weight of the L1 distance between every layer's hidden states and that teacher's, relative to the latter's norm.
        teacher_tokens: which tokens after the history are distilled: "all" of them, only those that predict "answers", or all,
            weighted by how far the history has "changed" the teacher's prediction.
        label_smoothing: share of every target that is spread evenly over the vocabulary.
    """

    answers: float = 1.0
    teacher: float = 0.0
    hidden: float = 0.0
    teacher_tokens: TeacherTokens = "all"
    label_smoothing: float = 0.0

    @property
    def follows_teacher(self) -> bool:
        """Whether the teacher that has the history in context is needed."""
        return self.teacher > 0 or self.hidden > 0

    @property
    def by_change(self) -> bool:
        """Whether the teacher's terms are weighted by how far the history changes its predictions."""
        return self.follows_teacher and self.teacher_tokens == "changed"


ANSWERS = Weighing()


class Costs(NamedTuple):
    """The costs of one view's read passes, in nats.

    Args:
        answers: summed over all labelled tokens.
        teacher: KL(teacher || model), summed over all distilled tokens.
        hidden: distance of the hidden states from the teacher's (see `Weighing`), summed over all distilled tokens.
        right, asked: `[reads]`, the number of answers predicted by argmax at every token, and the number of answers.
        each: `[reads]`, the mean cost per labelled token.
    """

    answers: Tensor
    teacher: Tensor
    hidden: Tensor
    right: Tensor
    asked: Tensor
    each: Tensor


class Amounts(NamedTuple):
    """The counts that one view's costs are divided by.

    Args:
        reads: number of read passes.
        answers: number of labelled tokens.
        taught: number of distilled tokens.
    """

    reads: int
    answers: Tensor
    taught: Tensor


def amounts(batch: Batch, view: View, weighing: Weighing) -> Amounts:
    """Count a view's reads, labelled tokens and distilled tokens in a batch."""
    return Amounts(len(batch["labels"]), predicts(batch["labels"]).sum(), taught_tokens(batch, view, weighing).sum())


def mean_costs(costs: Costs, counted: Amounts, view: View, weighing: Weighing) -> dict[str, Tensor]:
    """A view's weighted mean costs, by those of `TERMS` that count in it; `counted` may cover more batches than `costs`."""
    teacher = costs.teacher / counted.taught.clamp(min=1)
    if view.target == "backbone":
        return {"teacher": teacher}
    answers = costs.answers / counted.answers.clamp(min=1)
    if view.target == "history":
        return {"answers": answers}
    hidden = costs.hidden / counted.taught.clamp(min=1)
    weights = weighing.answers, weighing.teacher, weighing.hidden
    terms = zip(TERMS, weights, (answers, teacher, hidden), strict=True)
    return {name: weight * cost for name, weight, cost in terms if weight}


def answer_costs(logits: Tensor, labels: Tensor, predicting: Tensor, label_smoothing: float = 0.0) -> Costs:
    """Compute the cross-entropy of the labelled tokens.

    Args:
        logits: `[reads, places, vocabulary]`, at the positions in `predicting`.
        labels: `[reads, tokens]`.
        predicting: `[places]`, the positions that predict a labelled token in some read, ascending.
        label_smoothing: see `Weighing`.
    """
    targets = labels[:, predicting + 1]
    cost = F.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    ).view(targets.shape)
    each = cost.detach().sum(1) / (targets != IGNORED).sum(1).clamp(min=1)
    right, asked = _counted(logits.detach().argmax(-1), targets, predicting)
    none = cost.new_zeros(())
    return Costs(cost.sum(), none, none, right, asked, each)


def answer_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Costs:
    """Read a batch's questions and compute the cost of the answers.

    Args:
        model: any causal model; if it has a memory, the caller opens it.
        batch: `input_ids`, `attention_mask` and `labels`, `[reads, tokens]`.
        label_smoothing: see `Weighing`.
    """
    predicting = predicting_places(batch["labels"])
    return answer_costs(Reader(predicting)(model, batch).logits, batch["labels"], predicting, label_smoothing)


def predicts(labels: Tensor) -> Tensor:
    """Mark the positions whose next token is labelled, `[reads, tokens]`; nothing predicts the first token."""
    return F.pad(labels[:, 1:] != IGNORED, (0, 1))


def predicting_places(labels: Tensor) -> Tensor:
    """Positions whose next token is labelled in some row, `[places]`: computing all logits would slow a small model down."""
    return predicts(labels).any(0).nonzero().squeeze(1)


def divergence(predicted: Tensor, expected: Tensor) -> Tensor:
    """KL(expected || predicted) of logits `[tokens, vocabulary]`, in nats, `[tokens]`."""
    teacher = expected.softmax(-1)
    entropy = torch.special.entr(teacher).sum(-1)
    return F.cross_entropy(predicted.float(), teacher, reduction="none") - entropy


def hidden_distance(hidden: Tensor, expected: Tensor) -> Tensor:
    """The L1 distance of hidden states `[tokens, layers, width]`, relative to the L1 norm of those expected, `[tokens]`.

    Deep Context Distillation applies it to every layer (see docs/training.md).
    """
    apart = (hidden.float() - expected.float()).abs().sum(-1)
    return (apart / expected.float().abs().sum(-1)).mean(-1)


def taught_tokens(batch: Batch, view: View, weighing: Weighing) -> Tensor:
    """Mark the positions at which a teacher is followed: `[reads, tokens]`."""
    if not view.own:
        return batch["attention_mask"].bool()
    follows = batch["taught"] >= 0
    if view.target == "backbone":
        return follows
    if view.target == "history" or not weighing.follows_teacher:
        return torch.zeros_like(follows)
    if weighing.teacher_tokens == "answers":
        return follows & predicts(batch["labels"])
    return follows


def _counted(predicted: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Count the right answers and all answers of each row; an answer is a run of consecutive targets.

    Args:
        predicted, targets: `[batch, places]`. places: `[places]`, the positions of the targets, ascending.
    """
    labelled = targets != IGNORED
    before = F.pad(labelled[:, :-1] & (places.diff() == 1), (1, 0))
    answer = (labelled & ~before).cumsum(1)  # the answer that each target belongs to, counted from 1
    asked = answer[:, -1] if answer.shape[1] else torch.zeros(len(targets), dtype=torch.long, device=targets.device)
    wrong = labelled & (predicted != targets)
    spoilt = torch.zeros(len(targets), answer.shape[1] + 1, dtype=torch.bool, device=targets.device)
    spoilt.scatter_(1, torch.where(wrong, answer, 0), wrong)
    return asked - spoilt[:, 1:].sum(1), asked

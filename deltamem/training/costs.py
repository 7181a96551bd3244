"""What read passes cost: cross-entropy of answers, and how far what is said is from what teachers say."""

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


class Weighing(NamedTuple):
    """What a read pass is compared with.

    Args:
        answers: weight of the cross-entropy of labelled tokens.
        teacher: weight of KL(teacher || model), the teacher being the bare backbone with the whole chat in its context.
        hidden: weight of the L1 distance of every layer's hidden states from that teacher's, as a share of their own length.
        teacher_tokens: behind which of the tokens that follow the history it is followed: "all" of them, those before
            "answers", or all with weights: how far the history has "changed" what the teacher expects there.
        label_smoothing: this share of every target of an answer is spread evenly over the vocabulary.
    """

    answers: float = 1.0
    teacher: float = 0.0
    hidden: float = 0.0
    teacher_tokens: TeacherTokens = "all"
    label_smoothing: float = 0.0

    @property
    def follows_teacher(self) -> bool:
        """Whether the teacher that has the history is asked."""
        return self.teacher > 0 or self.hidden > 0

    @property
    def by_change(self) -> bool:
        """Whether the teacher counts by how far the history has changed what it says."""
        return self.follows_teacher and self.teacher_tokens == "changed"


ANSWERS = Weighing()


class Costs(NamedTuple):
    """What the read passes of one view cost, in nats.

    Args:
        answers: of all labelled tokens together.
        teacher: KL(teacher || model) of all tokens together behind which a teacher is followed.
        hidden: the distance of their hidden states from the teacher's, see `Weighing`, of all of them together.
        right, asked: `[reads]`, how many answers have the likeliest token at every place, and how many there are.
        each: `[reads]`, the mean cost of a labelled token.
    """

    answers: Tensor
    teacher: Tensor
    hidden: Tensor
    right: Tensor
    asked: Tensor
    each: Tensor


class Amounts(NamedTuple):
    """How much there is of a view.

    Args:
        reads: read passes.
        answers: labelled tokens.
        taught: tokens behind which a teacher is followed.
    """

    reads: int
    answers: Tensor
    taught: Tensor


def amounts(batch: Batch, view: View, weighing: Weighing) -> Amounts:
    """How much a batch has of a view: what costs are divided by."""
    return Amounts(len(batch["labels"]), predicts(batch["labels"]).sum(), taught_tokens(batch, view, weighing).sum())


def mean_cost(costs: Costs, counted: Amounts, view: View, weighing: Weighing) -> Tensor:
    """The mean over a view's tokens of each kind, weighed, of costs that may be a part of what was counted."""
    teacher, hidden = costs.teacher / counted.taught.clamp(min=1), costs.hidden / counted.taught.clamp(min=1)
    if view.target == "backbone":
        return teacher
    answers = costs.answers / counted.answers.clamp(min=1)
    if view.target == "history":
        return answers
    return weighing.answers * answers + weighing.teacher * teacher + weighing.hidden * hidden


def answer_costs(logits: Tensor, labels: Tensor, predicting: Tensor, label_smoothing: float = 0.0) -> Costs:
    """Cross-entropy of labelled tokens.

    Args:
        logits: `[reads, places, vocabulary]`, behind the tokens at `predicting`, `[places]`, ascending.
        labels: `[reads, tokens]`.
        predicting: see above.
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
    """Read the questions of a batch and compare the answers.

    Args:
        model: any causal model; its memory, if it has one, is the caller's to open.
        batch: `input_ids`, `attention_mask` and `labels`, `[reads, tokens]`.
        label_smoothing: see `Weighing`.
    """
    predicting = predicting_places(batch["labels"])
    return answer_costs(Reader(predicting)(model, batch).logits, batch["labels"], predicting, label_smoothing)


def predicts(labels: Tensor) -> Tensor:
    """Behind which tokens the next one is labelled, `[reads, tokens]`; nothing predicts the first token."""
    return F.pad(labels[:, 1:] != IGNORED, (0, 1))


def predicting_places(labels: Tensor) -> Tensor:
    """Where some row's next token is labelled, `[places]`: the vocabulary's matrix is a good part of a small model's work."""
    return predicts(labels).any(0).nonzero().squeeze(1)


def divergence(predicted: Tensor, expected: Tensor) -> Tensor:
    """KL(expected || predicted) of logits `[tokens, vocabulary]`, in nats, `[tokens]`."""
    teacher = expected.softmax(-1)
    entropy = torch.special.entr(teacher).sum(-1)
    return F.cross_entropy(predicted.float(), teacher, reduction="none") - entropy


def hidden_distance(hidden: Tensor, expected: Tensor) -> Tensor:
    """The L1 distance of hidden states `[tokens, layers, width]` as a share of the expected ones' length, `[tokens]`.

    Deep Context Distillation has it of every layer (see docs/training.md).
    """
    apart = (hidden.float() - expected.float()).abs().sum(-1)
    return (apart / expected.float().abs().sum(-1)).mean(-1)


def taught_tokens(batch: Batch, view: View, weighing: Weighing) -> Tensor:
    """Behind which tokens a teacher is followed: `[reads, tokens]`."""
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

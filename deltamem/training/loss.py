"""What episodes cost: their chats are written, then read, and what is expected is compared with answers and teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from deltamem.state import DeltaMemState
from deltamem.training.reading import Reader
from deltamem.training.scripts import IGNORED, NO_PLACE
from deltamem.training.views import ALL_VIEWS, View
from deltamem.training.writing import Batch, ChunkWriter, Written, can_share, write_from_backbone, write_from_memory

WriteFrom = Literal["memory", "backbone"]
TeacherTokens = Literal["all", "answers", "changed"]


class Weighing(NamedTuple):
    """What a read pass is compared with.

    Args:
        answers: weight of the cross-entropy of labelled tokens.
        teacher: weight of KL(teacher || model), the teacher being the bare backbone with the whole chat in its context.
        teacher_tokens: behind which of the tokens that follow the history it is followed: "all" of them, those before
            "answers", or all with weights: how far the history has "changed" what the teacher expects there.
        label_smoothing: this share of every target of an answer is spread evenly over the vocabulary.
    """

    answers: float = 1.0
    teacher: float = 0.0
    teacher_tokens: TeacherTokens = "all"
    label_smoothing: float = 0.0


ANSWERS = Weighing()


class Costs(NamedTuple):
    """What the read passes of one view cost, in nats.

    Args:
        answers: of all labelled tokens together.
        teacher: KL(teacher || model) of all tokens together behind which a teacher is followed.
        right, asked: `[reads]`, how many answers have the likeliest token at every place, and how many there are.
        each: `[reads]`, the mean cost of a labelled token.
    """

    answers: Tensor
    teacher: Tensor
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
    return Amounts(len(batch["labels"]), predicts(batch["labels"]).sum(), _taught(batch, view, weighing).sum())


def mean_cost(costs: Costs, counted: Amounts, view: View, weighing: Weighing) -> Tensor:
    """The mean over a view's tokens of each kind, weighed, of costs that may be a part of what was counted."""
    teacher = costs.teacher / counted.taught.clamp(min=1)
    if view.target == "backbone":
        return teacher
    return weighing.answers * costs.answers / counted.answers.clamp(min=1) + weighing.teacher * teacher


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
    return Costs(cost.sum(), cost.new_zeros(()), right, asked, each)


def answer_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Costs:
    """Read the questions of a batch and compare the answers.

    Args:
        model: any causal model; its memory, if it has one, is the caller's to open.
        batch: `input_ids`, `attention_mask` and `labels`, `[reads, tokens]`.
        label_smoothing: see `Weighing`.
    """
    predicting = predicting_places(batch["labels"])
    return answer_costs(Reader(predicting)(model, batch), batch["labels"], predicting, label_smoothing)


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


@dataclass
class EpisodeLoss:
    """Writes chats and reads them in their views.

    Args:
        adapted: the model with the δ-mem adapter.
        weighing: what read passes are compared with.
        write_from: what the memory sees of a chat: hidden states that its own corrections have changed, as in use ("memory"),
            or those of the bare "backbone", which needs no backward pass through it.
        write_chunk_tokens, gradient_chunks: see `ChunkWriter`; for histories written from the memory.
        write_gates: the mean write gate β of every pass that wrote with gradients, filled in.
    """

    adapted: PeftModel
    weighing: Weighing = ANSWERS
    write_from: WriteFrom = "memory"
    write_chunk_tokens: int | None = None
    gradient_chunks: int | None = None
    write_gates: list[Tensor] = field(default_factory=list)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Costs]:
        """What the read passes of a batch cost, by their views' names.

        Args:
            model: the model to call: `adapted`, or what wraps it.
            batch: what an `EpisodeCollator` makes.

        Raises:
            ValueError: a read with another's memory in a batch of one chat; several memories of one chat that is written from
                the memory.
        """
        needed = len(self._places(batch)) or any(view.filled for view in views_in(batch).values())
        written = self.write(model, batch) if needed else None
        costs: dict[str, Costs] = {}
        for names in _read_alike(views_in(batch)):
            costs |= self._read(model, written, {name: batch[name] for name in names})
        return costs

    def write(self, model: nn.Module, batch: Mapping[str, Any]) -> Written:
        """The write pass of a batch."""
        places = self._places(batch)
        if self.write_from == "backbone":
            least = min(int(batch[name]["written"].min()) for name in views_in(batch))
            written = write_from_backbone(model, self.adapted, batch["chats"], places, least)
        else:
            write = ChunkWriter(self.adapted, self.write_chunk_tokens, self.gradient_chunks)
            written = write_from_memory(model, write, batch["chats"], _told(batch), places)
        self.write_gates += written.write_gates
        return written

    def _places(self, batch: Mapping[str, Any]) -> Tensor:
        """Behind which tokens of the chats a teacher is asked, `[places]`."""
        followed = [
            batch[name]["taught"][_taught(batch[name], view, self.weighing)]
            for name, view in views_in(batch).items()
            if view.target == "answer"
        ]
        return torch.cat([batch["view"][:0], *followed]).unique()

    def _read(self, model: nn.Module, written: Written | None, batches: Mapping[str, Batch]) -> dict[str, Costs]:
        """Read passes of views that are passed through the model alike, in one pass."""
        view = ALL_VIEWS[next(iter(batches))]
        every = joined([*batches.values()])
        parts = dict(zip(batches, _split(every, [len(batch["labels"]) for batch in batches.values()]), strict=True))
        columns = _columns(parts, self.weighing)
        read = self._reader(model, every, columns, view)
        bare = self._bare(read, model, parts, every)
        with self.adapted.memory(self._memory(written, parts), write=view.write) as block:
            logits = read(model, every)
        self.write_gates += block.write_gates
        costs, row = {}, 0
        for name, part in parts.items():
            rows = slice(row, row := row + len(part["labels"]))
            costs[name] = self._costs(name, part, logits[rows], columns, written, None if bare is None else bare[rows])
        return costs

    def _reader(self, model: nn.Module, batch: Batch, columns: Tensor, view: View) -> Reader:
        """How read passes are passed through the model: what all begin with once, where the backbone alone writes."""
        if self.write_from == "memory" or view.write or not can_share(self.adapted):
            return Reader(columns)
        with torch.no_grad(), self.adapted.disable_adapter():
            return Reader.behind_beginning(model, batch, columns)

    def _memory(self, written: Written | None, parts: Mapping[str, Batch]) -> DeltaMemState:
        """A memory for each read pass."""
        memories = []
        for name, part in parts.items():
            view, chats, tokens = ALL_VIEWS[name], part["chat"], part["written"]
            if written is None or not view.filled:
                memories.append(self.adapted.new_memory(len(chats)))
                continue
            if view.another:
                chats, tokens = written.of_another(chats)
            memories.append(written.memory(chats, tokens))
        return memories[0] if len(memories) == 1 else DeltaMemState.stack(memories)

    @torch.no_grad()
    def _bare(self, read: Reader, model: nn.Module, parts: Mapping[str, Batch], every: Batch) -> Tensor | None:
        """What the bare backbone expects without any history, `[reads, columns, vocabulary]`; None if no view asks."""
        if not any(ALL_VIEWS[name].target == "backbone" for name in parts) and not self._weighs_change:
            return None
        with self.adapted.disable_adapter():
            return read(model, every)

    @property
    def _weighs_change(self) -> bool:
        return bool(self.weighing.teacher) and self.weighing.teacher_tokens == "changed"

    def _costs(
        self, name: str, part: Batch, logits: Tensor, columns: Tensor, written: Written | None, bare: Tensor | None
    ) -> Costs:
        """What the read passes of one view cost, from logits `[reads, columns, vocabulary]`."""
        view = ALL_VIEWS[name]
        predicting = predicting_places(part["labels"])
        at = torch.searchsorted(columns, predicting)
        costs = answer_costs(logits[:, at], part["labels"], predicting, self.weighing.label_smoothing)
        rows, places = _taught(part, view, self.weighing).nonzero(as_tuple=True)
        if not len(rows) or written is None:
            return costs
        at = torch.searchsorted(columns, places)
        without_history = None if bare is None else bare[rows, at].float()
        if view.target == "backbone" and without_history is not None:
            return costs._replace(teacher=divergence(logits[rows, at], without_history).sum())
        expected = written.expected(part["chat"][rows], part["taught"][rows, places])
        apart = divergence(logits[rows, at], expected)
        if self._weighs_change and without_history is not None:
            changed = divergence(without_history, expected)
            apart = apart * changed / changed.mean().clamp(min=1e-6)
        return costs._replace(teacher=apart.sum())


def views_in(batch: Mapping[str, Any]) -> dict[str, View]:
    """The views of a batch, by name."""
    return {name: view for name, view in ALL_VIEWS.items() if name in batch}


def _read_alike(views: Mapping[str, View]) -> list[list[str]]:
    """Names of views that one read pass can hold together: those of a chat begin alike and end at other lengths."""
    alike: dict[tuple[bool, bool, bool], list[str]] = {}
    for name, view in views.items():
        alike.setdefault((view.context, view.write, view.own), []).append(name)
    return [*alike.values()]


def _taught(batch: Batch, view: View, weighing: Weighing) -> Tensor:
    """Behind which tokens a teacher is followed: `[reads, tokens]`."""
    if not view.own:
        return batch["attention_mask"].bool()
    follows = batch["taught"] >= 0
    if view.target == "backbone":
        return follows
    if not weighing.teacher:
        return torch.zeros_like(follows)
    if weighing.teacher_tokens == "answers":
        return follows & predicts(batch["labels"])
    return follows


def _columns(parts: Mapping[str, Batch], weighing: Weighing) -> Tensor:
    """Behind which places of a read pass anything is compared, `[columns]`, ascending."""
    compared = [_taught(part, ALL_VIEWS[name], weighing).any(0) for name, part in parts.items()]
    compared += [predicts(part["labels"]).any(0) for part in parts.values()]
    return torch.stack(compared).any(0).nonzero().squeeze(1)


def _told(batch: Mapping[str, Any]) -> Tensor:
    """How many tokens of each chat its reads have in their memory, `[chats]`.

    Raises:
        ValueError: they differ.
    """
    told = torch.full((len(batch["chats"]["input_ids"]),), -1, dtype=torch.long, device=batch["view"].device)
    for name in views_in(batch):
        for chat, tokens in zip(batch[name]["chat"].tolist(), batch[name]["written"].tolist(), strict=True):
            if told[chat] not in (-1, tokens):
                raise ValueError(
                    'write_from="memory" knows the memory behind one place of a chat, and its reads ask for several; give '
                    'write_from="backbone", or one read a chat'
                )
            told[chat] = tokens
    return told


def joined(batches: Sequence[Batch]) -> Batch:
    """Read passes of several views as one batch, padded on the right."""
    fills = {"labels": IGNORED, "taught": NO_PLACE}
    return {name: _padded([batch[name] for batch in batches], fills.get(name, 0)) for name in batches[0]}


def _padded(tensors: Sequence[Tensor], fill: int) -> Tensor:
    if tensors[0].ndim == 1:
        return torch.cat([*tensors])
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([F.pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors])


def _split(batch: Batch, sizes: list[int]) -> list[Batch]:
    """The inverse of `joined`, all of one width."""
    split = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: tensors[number] for name, tensors in split.items()} for number in range(len(sizes))]


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

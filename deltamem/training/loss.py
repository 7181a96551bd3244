"""EpisodeLoss: writes chats, reads them in their views, and compares the predictions with answers and teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from deltamem.memory.state import DeltaMemState
from deltamem.training.costs import (
    ANSWERS,
    Costs,
    Weighing,
    answer_costs,
    divergence,
    hidden_distance,
    predicting_places,
    predicts,
    taught_tokens,
)
from deltamem.training.reading import Reader
from deltamem.training.scripts import IGNORED, NO_PLACE
from deltamem.training.views import ALL_VIEWS, View
from deltamem.training.writing import Batch, ChunkWriter, Outputs, Written, can_share, write_from_backbone, write_from_memory

WriteFrom = Literal["memory", "backbone"]


@dataclass
class EpisodeLoss:
    """Writes chats and reads them in their views.

    Args:
        adapted: the model with the δ-mem adapter.
        weighing: the weights of the loss terms.
        write_from: the hidden states that are written: those changed by the memory's own corrections, as in use ("memory"), or
            those of the bare "backbone", which needs no backward pass.
        write_chunk_tokens, gradient_chunks: see `ChunkWriter`; only with `write_from="memory"`.
        write_gates: collects the mean write gate β of every pass that writes with gradients.
    """

    adapted: PeftModel
    weighing: Weighing = ANSWERS
    write_from: WriteFrom = "memory"
    write_chunk_tokens: int | None = None
    gradient_chunks: int | None = None
    write_gates: list[Tensor] = field(default_factory=list)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Costs]:
        """Compute the costs of a batch's read passes, by the names of their views.

        Args:
            model: the model to call: `adapted`, or its wrapper.
            batch: made by an `EpisodeCollator`.

        Raises:
            ValueError: a view needs another chat's memory and the batch has one chat; with `write_from="memory"`, a chat's
                reads need memories of different lengths.
        """
        needed = len(self._places(batch)) or any(view.filled for view in views_in(batch).values())
        written = self.write(model, batch) if needed else None
        costs: dict[str, Costs] = {}
        for names in _read_alike(views_in(batch)):
            costs |= self._read(model, written, {name: batch[name] for name in names})
        return costs

    def write(self, model: nn.Module, batch: Mapping[str, Any]) -> Written:
        """Run the write pass of a batch."""
        places = self._places(batch)
        if self.write_from == "backbone":
            least = min(int(batch[name]["written"].min()) for name in views_in(batch))
            written = write_from_backbone(model, self.adapted, batch["chats"], places, least, self._hidden)
        else:
            write = ChunkWriter(self.adapted, self.write_chunk_tokens, self.gradient_chunks)
            written = write_from_memory(model, write, batch["chats"], _told(batch), places, self._hidden)
        self.write_gates += written.write_gates
        return written

    def _places(self, batch: Mapping[str, Any]) -> Tensor:
        """Positions in the chats at which a teacher's prediction is needed, `[places]`."""
        followed = [
            batch[name]["taught"][taught_tokens(batch[name], view, self.weighing)]
            for name, view in views_in(batch).items()
            if view.target == "answer"
        ]
        return torch.cat([batch["view"][:0], *followed]).unique()

    def _read(self, model: nn.Module, written: Written | None, batches: Mapping[str, Batch]) -> dict[str, Costs]:
        """Run the read passes of views that can share one forward pass."""
        view = ALL_VIEWS[next(iter(batches))]
        every = joined([*batches.values()])
        parts = dict(zip(batches, _split(every, [len(batch["labels"]) for batch in batches.values()]), strict=True))
        columns = _columns(parts, self.weighing)
        read = self._reader(model, every, columns, view)
        bare = self._bare(read, model, parts, every)
        with self.adapted.memory(self._memory(written, parts), write=view.write) as block:
            said = read(model, every)
        self.write_gates += block.write_gates
        costs, row = {}, 0
        for name, part in parts.items():
            rows = slice(row, row := row + len(part["labels"]))
            costs[name] = self._costs(name, part, said.rows(rows), columns, written, None if bare is None else bare[rows])
        return costs

    def _reader(self, model: nn.Module, batch: Batch, columns: Tensor, view: View) -> Reader:
        """A reader for the read passes; if the backbone alone writes, it runs their common beginning once."""
        if self.write_from == "memory" or view.write or not can_share(self.adapted):
            return Reader(columns, hidden=self._hidden)
        with torch.no_grad(), self.adapted.disable_adapter():
            return Reader.behind_beginning(model, batch, columns, self._hidden)

    def _memory(self, written: Written | None, parts: Mapping[str, Batch]) -> DeltaMemState:
        """Stack a memory for each read pass."""
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
        """Logits of the bare backbone without any history, `[reads, columns, vocabulary]`; None if no view needs them."""
        if not any(ALL_VIEWS[name].target == "backbone" for name in parts) and not self.weighing.by_change:
            return None
        with self.adapted.disable_adapter():
            return replace(read, hidden=False)(model, every).logits

    @property
    def _hidden(self) -> bool:
        """Whether hidden states are compared."""
        return self.weighing.hidden > 0

    def _costs(
        self, name: str, part: Batch, said: Outputs, columns: Tensor, written: Written | None, bare: Tensor | None
    ) -> Costs:
        """Compute the costs of one view's read passes from the predictions of the model and of the bare backbone."""
        view = ALL_VIEWS[name]
        predicting = predicting_places(part["labels"])
        at = torch.searchsorted(columns, predicting)
        costs = answer_costs(said.logits[:, at], part["labels"], predicting, self.weighing.label_smoothing)
        rows, places = taught_tokens(part, view, self.weighing).nonzero(as_tuple=True)
        if not len(rows) or written is None:
            return costs
        at = torch.searchsorted(columns, places)
        logits, hidden = said.at(rows, at)
        without_history = None if bare is None else bare[rows, at].float()
        if view.target == "backbone" and without_history is not None:
            return costs._replace(teacher=divergence(logits, without_history).sum())
        teacher = written.expected(part["chat"][rows], part["taught"][rows, places])
        expected = teacher.logits.float()
        weight = torch.ones_like(expected[:, 0])  # [tokens]
        if self.weighing.by_change and without_history is not None:
            changed = divergence(without_history, expected)
            weight = changed / changed.mean().clamp(min=1e-6)
        costs = costs._replace(teacher=(divergence(logits, expected) * weight).sum())
        if hidden is None or teacher.hidden is None:
            return costs
        return costs._replace(hidden=(hidden_distance(hidden, teacher.hidden) * weight).sum())


def views_in(batch: Mapping[str, Any]) -> dict[str, View]:
    """The views that occur in a batch, by name."""
    return {name: view for name, view in ALL_VIEWS.items() if name in batch}


def _read_alike(views: Mapping[str, View]) -> list[list[str]]:
    """Group the names of views that can share a read pass: their reads begin alike and differ in length only."""
    alike: dict[tuple[bool, bool, bool], list[str]] = {}
    for name, view in views.items():
        alike.setdefault((view.context, view.write, view.own), []).append(name)
    return [*alike.values()]


def _columns(parts: Mapping[str, Batch], weighing: Weighing) -> Tensor:
    """Positions of a read pass at which anything is compared, `[columns]`, ascending."""
    compared = [taught_tokens(part, ALL_VIEWS[name], weighing).any(0) for name, part in parts.items()]
    compared += [predicts(part["labels"]).any(0) for part in parts.values()]
    return torch.stack(compared).any(0).nonzero().squeeze(1)


def _told(batch: Mapping[str, Any]) -> Tensor:
    """How many tokens of each chat its reads have in memory, `[chats]`.

    Raises:
        ValueError: they differ between a chat's reads.
    """
    told = torch.full((len(batch["chats"]["input_ids"]),), -1, dtype=torch.long, device=batch["view"].device)
    for name in views_in(batch):
        for chat, tokens in zip(batch[name]["chat"].tolist(), batch[name]["written"].tolist(), strict=True):
            if told[chat] not in (-1, tokens):
                raise ValueError(
                    'write_from="memory" provides one memory per chat, but the reads of a chat need memories of different '
                    'lengths; give write_from="backbone", or one read per chat'
                )
            told[chat] = tokens
    return told


def joined(batches: Sequence[Batch]) -> Batch:
    """Concatenate read passes of several views into one batch, padded on the right."""
    fills = {"labels": IGNORED, "taught": NO_PLACE}
    return {name: _padded([batch[name] for batch in batches], fills.get(name, 0)) for name in batches[0]}


def _padded(tensors: Sequence[Tensor], fill: int) -> Tensor:
    if tensors[0].ndim == 1:
        return torch.cat([*tensors])
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([F.pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors])


def _split(batch: Batch, sizes: list[int]) -> list[Batch]:
    """Split a batch made by `joined`; all parts keep its width."""
    split = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: tensors[number] for name, tensors in split.items()} for number in range(len(sizes))]

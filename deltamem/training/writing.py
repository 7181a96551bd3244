"""The write pass: writes chats to a memory, which can then be read as it was after any of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from deltamem.forward.memory_pass import TokenWrites
from deltamem.hook.text_decoder import last_place
from deltamem.memory.snapshot import Snapshot
from deltamem.memory.state import DeltaMemState
from deltamem.versions import CACHE

Batch = dict[str, Tensor]
LEAST_SHARED = 8  # tokens; fewer are not worth a separate pass


class Outputs(NamedTuple):
    """A model's outputs at some positions.

    Args:
        logits: `[rows, tokens, vocabulary]`.
        hidden: the outputs of every layer, `[rows, tokens, layers, width]`; None if they were not requested.
    """

    logits: Tensor
    hidden: Tensor | None = None

    @classmethod
    def from_model(cls, output: Any, places: Tensor) -> Outputs:
        """Collect a model's logits, computed at `places` only, `[tokens]`, and its hidden states at those places."""
        layers = output.hidden_states  # the first are the embeddings
        return cls(output.logits, None if layers is None else torch.stack([layer[:, places] for layer in layers[1:]], dim=2))

    def detach(self) -> Outputs:
        """Detach from the graph."""
        return Outputs(self.logits.detach(), None if self.hidden is None else self.hidden.detach())

    def at(self, rows: Tensor, places: Tensor) -> Outputs:
        """Select single tokens by row and place, `[tokens]` each: `[tokens, vocabulary]` and `[tokens, layers, width]`."""
        return Outputs(self.logits[rows, places], None if self.hidden is None else self.hidden[rows, places])

    def rows(self, rows: slice) -> Outputs:
        """Select rows."""
        return Outputs(self.logits[rows], None if self.hidden is None else self.hidden[rows])


@dataclass(frozen=True)
class Written:
    """Chats that were written to a memory.

    Args:
        state: the memory after the last written token of every chat.
        tokens: how many tokens were written, `[chats]`.
        write_gates: the mean write gate β of each pass that wrote with gradients.
        backbone: the bare backbone's outputs at some tokens of the chats; None if none were requested.
        places: the indices of these tokens, `[places]`, ascending.
        token_writes: the writes of each token after the chats' common beginning, by attention module; empty if only the final
            memory is known.
        beginning: the memory of the chats' common beginning, one row; None if there is none.
    """

    state: DeltaMemState
    tokens: Tensor
    write_gates: list[Tensor]
    backbone: Outputs | None
    places: Tensor
    token_writes: Mapping[str, TokenWrites] = field(default_factory=dict)
    beginning: DeltaMemState | None = None

    def memory(self, chats: Tensor, tokens: Tensor) -> DeltaMemState:
        """Return the memory of chats as it was after some of their tokens.

        Args:
            chats: `[reads]`, indices in the batch. tokens: `[reads]`, how many were written.
        """
        if not self.token_writes:
            return DeltaMemState(self.state.snapshot.select(chats))
        begun, shared = None, 0
        if self.beginning is not None:
            begun, shared = self.beginning.snapshot, self.beginning.tokens[0]
        states = {
            name: writes.after(chats, tokens - shared, None if begun is None else begun.state(name))
            for name, writes in self.token_writes.items()
        }
        return DeltaMemState(Snapshot.from_layers(states, tokens))

    def of_another(self, chats: Tensor) -> tuple[Tensor, Tensor]:
        """For each chat, return the next one in the batch and its number of tokens, `[reads]` each.

        Raises:
            ValueError: the batch has only one chat.
        """
        if len(self.tokens) < 2:
            raise ValueError("to read with another's memory, a batch needs at least 2 chats, got 1; give larger batches")
        others = (chats + 1) % len(self.tokens)
        return others, self.tokens[others]

    def expected(self, chats: Tensor, places: Tensor) -> Outputs:
        """The backbone's outputs at tokens given by chat and index, `[tokens]` each; all must have been requested."""
        return cast(Outputs, self.backbone).at(chats, torch.searchsorted(self.places, places))


def write_from_backbone(
    model: nn.Module, adapted: PeftModel, batch: Batch, places: Tensor, least: int, hidden: bool = False
) -> Written:
    """Write chats from the bare backbone's hidden states, in passes that do not read.

    The backbone then needs no backward pass. The same pass yields its predictions with the whole chat in context, the memory is
    known at every token, and the chats' common beginning (a system prompt) is computed once.

    Args:
        model: the model to call: `adapted`, or its wrapper.
        adapted: the model with the adapter.
        batch: `input_ids`, `attention_mask` and, for adapters that write segments, `segment_ids`, all `[chats, tokens]`,
            padded on the left.
        places: indices of tokens at which the backbone's outputs are requested, `[places]`, ascending; may be empty.
        least: the memory is never requested after fewer tokens than this.
        hidden: whether hidden states are requested there as well.
    """
    chats = _begun_together(batch)
    ids, mask, segment_ids = chats["input_ids"], chats["attention_mask"], chats.get("segment_ids")
    shared = 0
    if segment_ids is None and can_share(adapted):
        shared = shared_tokens(chats, min([least, *places[:1].tolist()]))
    state, beginning, cached = adapted.new_memory(len(ids)), None, {"use_cache": False}
    if shared:
        beginning, cache = _write_beginning(model, adapted, ids[:1, :shared])
        cache.batch_repeat_interleave(len(ids))
        cached = {CACHE: cache, "use_cache": True}
        state.snapshot = beginning.snapshot.repeat(len(ids))
    ids = ids[:, shared:]
    asked = places - shared if len(places) else last_place(ids)
    with adapted.memory(state, read=False, segment_ids=segment_ids, detach=False) as block:
        output = model(input_ids=ids, attention_mask=mask, **cached, logits_to_keep=asked, output_hidden_states=hidden or None)
    backbone = Outputs.from_model(output, asked).detach() if len(places) else None
    return Written(state, mask.sum(1), block.write_gates, backbone, places, block.token_writes, beginning)


def can_share(adapted: PeftModel) -> bool:
    """Whether rows can continue from one KV cache, which activation checkpointing rules out."""
    return not getattr(adapted, "is_gradient_checkpointing", False)


def shared_tokens(batch: Batch, most: int) -> int:
    """How many tokens all rows of a right-padded batch begin with; 0 if too few to be worth a separate pass."""
    ids = batch["input_ids"][:, :most]
    same = (ids == ids[:1]).all(0) & batch["attention_mask"][:, :most].bool().all(0)
    shared = int(same.long().cumprod(0).sum())
    return shared if shared >= LEAST_SHARED and len(ids) > 1 else 0


def _write_beginning(model: nn.Module, adapted: PeftModel, ids: Tensor) -> tuple[DeltaMemState, Any]:
    """Write one row, `[1, tokens]`; return its memory and its KV cache."""
    state = adapted.new_memory(1)
    with adapted.memory(state, read=False, detach=False):
        output = model(input_ids=ids, use_cache=True, logits_to_keep=last_place(ids))
    return state, output[CACHE]


def _begun_together(batch: Batch) -> Batch:
    """Turn left padding into right padding."""
    order = batch["attention_mask"].argsort(dim=1, descending=True, stable=True)
    return {name: tensor.gather(1, order) for name, tensor in batch.items()}


@dataclass(frozen=True)
class ChunkWriter:
    """Writes chats as in use: the memory written so far is read along the way.

    Args:
        adapted: the model with the adapter.
        chunk_tokens: write in chunks of this many tokens, each in a fresh context; None for all at once.
        gradient_chunks: how many chunks at the end receive gradients; None for all.
        after_chunk: called with the memory after each chunk, unless None.
    """

    adapted: PeftModel
    chunk_tokens: int | None = None
    gradient_chunks: int | None = None
    after_chunk: Callable[[DeltaMemState], None] | None = None

    def __call__(self, model: nn.Module, batch: Batch, state: DeltaMemState) -> list[Tensor]:
        """Write a batch (see `write_from_backbone`) to a memory that has a row for each chat.

        Returns:
            The mean write gate β of every chunk that receives gradients.
        """
        gates: list[Tensor] = []
        tokens = batch["input_ids"].shape[1]
        size = min(self.chunk_tokens or tokens, tokens)
        # The chats end together, so the first chunk is the one that may be short.
        ends = [*reversed(range(tokens, 0, -size))]
        for left, end in zip(reversed(range(len(ends))), ends, strict=True):
            chunk = {name: tensor[:, max(end - size, 0) : end] for name, tensor in batch.items()}
            linked = torch.is_grad_enabled() and (self.gradient_chunks is None or left < self.gradient_chunks)
            with torch.set_grad_enabled(linked):
                gates += self._write(model, chunk, state, left > 0)
            if self.after_chunk is not None:
                self.after_chunk(state)
        return gates

    def _write(self, model: nn.Module, batch: Batch, state: DeltaMemState, goes_on: bool) -> list[Tensor]:
        segment_ids, ids = batch.get("segment_ids"), batch["input_ids"]
        keep_open = goes_on and segment_ids is not None
        with self.adapted.memory(state, segment_ids=segment_ids, keep_open=keep_open, detach=False) as block:
            model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=last_place(ids))
        return block.write_gates


def write_from_memory(
    model: nn.Module, write: ChunkWriter, batch: Batch, told: Tensor, places: Tensor, hidden: bool = False
) -> Written:
    """Write the beginnings of chats as in use; the backbone's outputs come from a separate pass.

    Args:
        model, batch, places, hidden: see `write_from_backbone`.
        write: the writer to use.
        told: how many tokens of each chat to write, `[chats]`; -1 for all.
    """
    mask, ids = batch["attention_mask"], batch["input_ids"]
    tokens = torch.where(told < 0, mask.sum(1), told)
    beginning = mask * (mask.cumsum(1) <= tokens[:, None])
    state = write.adapted.new_memory(len(ids))
    gates = write(model, {**batch, "attention_mask": beginning}, state)
    backbone = None
    if len(places):
        chats = _begun_together({"input_ids": ids, "attention_mask": mask})
        with torch.no_grad(), write.adapted.disable_adapter():
            output = model(**chats, use_cache=False, logits_to_keep=places, output_hidden_states=hidden or None)
        backbone = Outputs.from_model(output, places)
    return Written(state, tokens, gates, backbone, places)

"""The write pass: chats are written to a memory, which can then be read as it was at any of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from deltamem.contents import Contents
from deltamem.decoder import last_place
from deltamem.passes import TokenWrites
from deltamem.state import DeltaMemState

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Written:
    """Chats in a memory.

    Args:
        state: the memory behind the last token of every chat.
        token_writes: what each token wrote, by attention module; empty where only the end is known.
        logits: what the bare backbone expects behind some tokens of the chats, `[chats, places, vocabulary]`; None if it was
            not asked.
        places: where these tokens stand, `[places]`, ascending.
        tokens: how many tokens of each chat `state` holds, `[chats]`.
        write_gates: the mean write gate β of the passes that wrote with gradients.
    """

    state: DeltaMemState
    token_writes: Mapping[str, TokenWrites]
    logits: Tensor | None
    places: Tensor
    tokens: Tensor
    write_gates: list[Tensor]

    def memory(self, chats: Tensor, tokens: Tensor) -> DeltaMemState:
        """The memory of chats as it was after some of their tokens.

        Args:
            chats: `[reads]`, places in the batch. tokens: `[reads]`, how many were written.
        """
        if not self.token_writes:
            return DeltaMemState(self.state.contents.select(chats))
        states = {name: writes.after(chats, tokens) for name, writes in self.token_writes.items()}
        return DeltaMemState(Contents(states, tokens))

    def of_another(self, chats: Tensor) -> tuple[Tensor, Tensor]:
        """For each chat the next one in the batch, and how many tokens it has, `[reads]` each.

        Raises:
            ValueError: the batch has only one.
        """
        if len(self.tokens) < 2:
            raise ValueError("to read with another's memory, a batch needs at least 2 chats, got 1; give larger batches")
        others = (chats + 1) % len(self.tokens)
        return others, self.tokens[others]

    def expected(self, chats: Tensor, places: Tensor) -> Tensor:
        """What the backbone expects behind tokens, `[tokens, vocabulary]`, given by their chats and places, `[tokens]` each."""
        assert self.logits is not None
        return self.logits[chats, torch.searchsorted(self.places, places)].float()


def write_from_backbone(model: nn.Module, adapted: PeftModel, batch: Batch, places: Tensor) -> Written:
    """Write chats in one pass in which nothing is read: the memory sees the bare backbone's hidden states.

    So the backbone needs no backward pass, the same pass tells what it expects with all of the chat in its context, and the
    memory is known at every token.

    Args:
        model: the model to call: `adapted`, or what wraps it.
        adapted: the model with the adapter.
        batch: `input_ids`, `attention_mask` and, for adapters that write segments, `segment_ids`, all `[chats, tokens]`.
        places: where the backbone is asked what it expects, `[places]`, ascending; may be empty.
    """
    ids = batch["input_ids"]
    state = adapted.new_memory(len(ids))
    asked = places if len(places) else last_place(ids)
    with adapted.memory(state, read=False, segment_ids=batch.get("segment_ids"), detach=False) as block:
        output = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=asked)
    logits = output.logits.detach() if len(places) else None
    tokens = batch["attention_mask"].sum(1)
    return Written(state, block.token_writes, logits, places, tokens, block.write_gates)


@dataclass(frozen=True)
class ChunkWriter:
    """Writes chats as a memory is written in use: what it holds already is read meanwhile.

    Args:
        adapted: the model with the adapter.
        chunk_tokens: chats are written in chunks of so many tokens, each in a context of its own; None for at once.
        gradient_chunks: gradients flow through so many chunks at the end; None for all.
        after_chunk: called with the memory after each chunk; None for nothing.
    """

    adapted: PeftModel
    chunk_tokens: int | None = None
    gradient_chunks: int | None = None
    after_chunk: Callable[[DeltaMemState], None] | None = None

    def __call__(self, model: nn.Module, batch: Batch, state: DeltaMemState) -> list[Tensor]:
        """Write a batch as `write_from_backbone` takes it to a memory that has a row for each chat.

        Returns:
            The mean write gate β of every chunk that gradients flow through.
        """
        gates: list[Tensor] = []
        tokens = batch["input_ids"].shape[1]
        size = min(self.chunk_tokens or tokens, tokens)
        # The chats end together, so that the first chunk is the one that may be short.
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


def write_from_memory(model: nn.Module, write: ChunkWriter, batch: Batch, told: Tensor, places: Tensor) -> Written:
    """Write the beginnings of chats as a memory is written in use; the backbone is asked in a pass of its own.

    Args:
        model, batch, places: see `write_from_backbone`.
        write: how.
        told: how many tokens of each chat are written, `[chats]`; all of it for -1.
    """
    mask, ids = batch["attention_mask"], batch["input_ids"]
    tokens = torch.where(told < 0, mask.sum(1), told)
    beginning = mask * (mask.cumsum(1) <= tokens[:, None])
    state = write.adapted.new_memory(len(ids))
    gates = write(model, {**batch, "attention_mask": beginning}, state)
    logits = None
    if len(places):
        with torch.no_grad(), write.adapted.disable_adapter():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=places).logits
    return Written(state, {}, logits, places, tokens, gates)

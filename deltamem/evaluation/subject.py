"""What is evaluated: a bare backbone, or one with an adapter, which may have a memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from deltamem.chat_tokens import ChatTokens, Message, left_padded, with_system
from deltamem.config import WriteUnit
from deltamem.decoder import text_config
from deltamem.model import DeltaMemModel
from deltamem.state import DeltaMemState
from deltamem.training.loss import EpisodeLoss


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated.

    Args:
        model: a model with a δ-mem adapter, with any other adapter of PEFT, or bare.
        tokenizer: its tokenizer.
        system: the system prompt of every chat; the chat template's own if None.
        write_chunk_tokens: histories are written in chunks of so many tokens, each in a context of its own; at once if None.
    """

    model: PeftModel | PreTrainedModel
    tokenizer: Any
    system: str | None = None
    write_chunk_tokens: int | None = None

    @property
    def has_memory(self) -> bool:
        """Whether its adapter is one of δ-mem."""
        return isinstance(getattr(self.model, "base_model", None), DeltaMemModel)

    def bare(self) -> AbstractContextManager[Any]:
        """A context in which the model is its backbone alone."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()

    @torch.no_grad()
    def write(self, histories: Sequence[Sequence[Message]]) -> DeltaMemState:
        """Write one history per row to an empty memory."""
        write = self.model.active_peft_config.write
        tokens = [self.tokens(history, write) for history in histories]
        ids, mask = self.left_padded([row.ids for row in tokens])
        batch = {"write_input_ids": ids, "write_attention_mask": mask}
        if write != "token":
            batch["write_segment_ids"] = self.left_padded([row.segment_ids for row in tokens], fill=-1)[0]
        memory = self.model.new_memory(len(histories))
        EpisodeLoss(self.model, self.write_chunk_tokens).fill(self.model, batch, memory)
        return memory

    def tokens(
        self, messages: Sequence[Message], write: WriteUnit = "token", add_generation_prompt: bool = False
    ) -> ChatTokens:
        """A chat behind the system prompt as tokens."""
        return ChatTokens.of(self.tokenizer, with_system(self.system, messages), write, add_generation_prompt)

    def left_padded(self, rows: Sequence[Tensor], fill: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows of different lengths as `[rows, tokens]` and their mask, on the model's device."""
        device = self.model.device
        fill = (self.tokenizer.pad_token_id or 0) if fill is None else fill
        ids, mask = left_padded(rows, fill), left_padded([torch.ones_like(row) for row in rows], 0)
        return ids.to(device), mask.to(device)

    def check_window(self, tokens: int, what: str) -> None:
        """Make sure that so many tokens fit into the model's window.

        Raises:
            ValueError: they do not; names `what`.
        """
        window = getattr(text_config(self.model), "max_position_embeddings", None)
        if window is not None and tokens > window:
            raise ValueError(f"{what} takes {tokens} tokens, and the model's window has {window}; give shorter texts")

"""The model under evaluation: a bare backbone, or one with an adapter, with or without a memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from deltamem.chat.tokens import ChatTokens, Message, left_padded, system_prompt, with_system
from deltamem.config import WriteUnit
from deltamem.hook.text_decoder import last_place, text_config
from deltamem.memory.state import DeltaMemState
from deltamem.model import DeltaMemModel
from deltamem.training.writing import ChunkWriter
from deltamem.versions import CACHE


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Args:
        model: a model with a δ-mem adapter, with another PEFT adapter, or bare.
        tokenizer: its tokenizer.
        system: the system prompt of chats that do not begin with one; None for the chat template's own.
        write_chunk_tokens: write histories in chunks of this many tokens, each in a fresh context; None for all at once.
    """

    model: PeftModel | PreTrainedModel
    tokenizer: Any
    system: str | None = None
    write_chunk_tokens: int | None = None

    @property
    def has_memory(self) -> bool:
        """Whether the model has a δ-mem adapter."""
        return isinstance(getattr(self.model, "base_model", None), DeltaMemModel)

    def bare(self) -> AbstractContextManager[Any]:
        """A context in which the adapter is off."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()

    @property
    def ends(self) -> set[int]:
        """The ids of the tokens that end an answer."""
        given = self.model.generation_config.eos_token_id
        several = given if isinstance(given, list) else [given]
        return {token for token in (*several, self.tokenizer.eos_token_id) if token is not None}

    @torch.no_grad()
    def write(
        self, histories: Sequence[Sequence[Message]], after_chunk: Callable[[DeltaMemState], None] | None = None
    ) -> DeltaMemState:
        """Write one history per row to an empty memory; `after_chunk` is called with it after each chunk."""
        write = self.model.active_peft_config.write
        return self.write_tokens([self.tokens(history, write) for history in histories], after_chunk)

    @torch.no_grad()
    def write_tokens(
        self, tokens: Sequence[ChatTokens], after_chunk: Callable[[DeltaMemState], None] | None = None
    ) -> DeltaMemState:
        """Write tokens with their segments as `write` does."""
        ids, mask = self.left_padded([row.ids for row in tokens])
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.model.active_peft_config.writes_segments:
            batch["segment_ids"] = self.left_padded([row.segment_ids for row in tokens], fill=-1)[0]
        memory = self.model.new_memory(len(tokens))
        ChunkWriter(self.model, self.write_chunk_tokens, after_chunk=after_chunk)(self.model, batch, memory)
        return memory

    @torch.no_grad()
    def write_in_parts(self, parts: Sequence[Sequence[Message]]) -> list[DeltaMemState]:
        """Write one history as `write` does, and also return the intermediate memories.

        Args:
            parts: the history's messages, in consecutive parts.

        Returns:
            The memory after each part or, with `write_chunk_tokens`, after each chunk. Only the final memory if writing part by
            part would change it: if the chat template renders a part differently once another follows, or if the adapter writes
            segments and so reads only what was written before the pass.
        """
        messages = [message for part in parts for message in part]
        kept: list[DeltaMemState] = []
        if self.write_chunk_tokens is not None:
            self.write([messages], lambda memory: kept.append(memory.clone()))
            return kept
        counts = accumulate(len(part) for part in parts)
        begun = [self.tokens(messages[:count]).ids for count in counts]
        alike = all(torch.equal(ids, begun[-1][: len(ids)]) for ids in begun)
        if self.model.active_peft_config.writes_segments or not alike:
            return [self.write([messages])]
        memory, cache = self.model.new_memory(), DynamicCache(config=self.model.config)
        for begin, upto in zip([0, *map(len, begun)], begun, strict=False):
            ids = upto[None, begin:].to(self.model.device)
            with self.model.memory(memory):
                self.model(input_ids=ids, **{CACHE: cache}, use_cache=True, logits_to_keep=last_place(ids))
            kept.append(memory.clone())
        return kept

    def tokens(
        self, messages: Sequence[Message], write: WriteUnit = "token", add_generation_prompt: bool = False
    ) -> ChatTokens:
        """Tokenise a chat with its system prompt."""
        return ChatTokens.from_messages(self.tokenizer, self.behind_system(messages), write, add_generation_prompt)

    def behind_system(self, messages: Sequence[Message]) -> list[Message]:
        """Prepend the system prompt, unless the chat begins with its own."""
        return with_system(None if system_prompt(messages) else self.system, messages)

    def answer_ids(self, answer: str) -> Tensor:
        """Tokenise an answer and its end of turn, `[tokens]`."""
        ids = [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        return torch.tensor(ids, dtype=torch.long, device="cpu")

    def left_padded(self, rows: Sequence[Tensor], fill: int | None = None) -> tuple[Tensor, Tensor]:
        """Pad rows on the left to `[rows, tokens]`, and create their mask, on the model's device."""
        device = self.model.device
        fill = (self.tokenizer.pad_token_id or 0) if fill is None else fill
        ids, mask = left_padded(rows, fill), left_padded([torch.ones_like(row) for row in rows], 0)
        return ids.to(device), mask.to(device)

    def start(self, rows: int, with_adapter: bool = False) -> tuple[Any, Cache, int]:
        """Set up reading: return the model to call, a KV cache, and the number of trained prefix tokens in the cache.

        Args:
            rows: number of prompts.
            with_adapter: whether to keep an adapter without a memory on.

        Raises:
            ValueError: the adapter is of a prompt-learning type other than prefix tuning.
        """
        config = self.model.active_peft_config if with_adapter else None
        if config is None or not config.is_prompt_learning:
            return self.model, DynamicCache(config=self.model.config), 0
        if config.peft_type != PeftType.PREFIX_TUNING:
            raise ValueError(f"{config.peft_type.value} adapters cannot be evaluated here; LoRA and prefix tuning can")
        # peft's own forward starts every pass with the prefix, and so would forget the prompt.
        return self.model.base_model, self.model.get_prompt(rows), config.num_virtual_tokens

    def check_window(self, tokens: int, what: str) -> None:
        """Check that a number of tokens fits into the model's window.

        Raises:
            ValueError: it does not; the message names `what`.
        """
        window = getattr(text_config(self.model), "max_position_embeddings", None)
        if window is not None and tokens > window:
            raise ValueError(f"{what} takes {tokens} tokens, and the model's window has {window}; give shorter texts")

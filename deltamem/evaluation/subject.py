"""What is evaluated: a bare backbone, or one with an adapter, which may have a memory."""

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
from deltamem.forward.kv_cache import CACHE
from deltamem.hook.text_decoder import last_place, text_config
from deltamem.memory.state import DeltaMemState
from deltamem.model import DeltaMemModel
from deltamem.training.writing import ChunkWriter


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated.

    Args:
        model: a model with a δ-mem adapter, with any other adapter of PEFT, or bare.
        tokenizer: its tokenizer.
        system: the system prompt of every chat that does not begin with one of its own; the chat template's own if None.
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

    @property
    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        given = self.model.generation_config.eos_token_id
        several = given if isinstance(given, list) else [given]
        return {token for token in (*several, self.tokenizer.eos_token_id) if token is not None}

    @torch.no_grad()
    def write(
        self, histories: Sequence[Sequence[Message]], after_chunk: Callable[[DeltaMemState], None] | None = None
    ) -> DeltaMemState:
        """Write one history per row to an empty memory; `after_chunk` sees it after each chunk."""
        write = self.model.active_peft_config.write
        return self.write_tokens([self.tokens(history, write) for history in histories], after_chunk)

    @torch.no_grad()
    def write_tokens(
        self, tokens: Sequence[ChatTokens], after_chunk: Callable[[DeltaMemState], None] | None = None
    ) -> DeltaMemState:
        """As `write`, of tokens with the segments that the adapter writes."""
        ids, mask = self.left_padded([row.ids for row in tokens])
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.model.active_peft_config.writes_segments:
            batch["segment_ids"] = self.left_padded([row.segment_ids for row in tokens], fill=-1)[0]
        memory = self.model.new_memory(len(tokens))
        ChunkWriter(self.model, self.write_chunk_tokens, after_chunk=after_chunk)(self.model, batch, memory)
        return memory

    @torch.no_grad()
    def write_in_parts(self, parts: Sequence[Sequence[Message]]) -> list[DeltaMemState]:
        """Write one history as `write` does, and keep what the memory was on the way.

        Args:
            parts: the history's messages, one part after the other.

        Returns:
            The memory after each part; with `write_chunk_tokens` after each chunk. After all of them only where the parts
            would make another memory: the chat template renders one otherwise once another follows, or the adapter writes
            segments, and reads in a pass what was written before it.
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
        """A chat behind the system prompt as tokens."""
        return ChatTokens.of(self.tokenizer, self.behind_system(messages), write, add_generation_prompt)

    def behind_system(self, messages: Sequence[Message]) -> list[Message]:
        """A chat with a system prompt: its own if it begins with one."""
        return with_system(None if system_prompt(messages) else self.system, messages)

    def answer_ids(self, answer: str) -> Tensor:
        """An answer as tokens with the end of the assistant's turn, `[tokens]`."""
        ids = [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        return torch.tensor(ids, dtype=torch.long, device="cpu")

    def left_padded(self, rows: Sequence[Tensor], fill: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows of different lengths as `[rows, tokens]` and their mask, on the model's device."""
        device = self.model.device
        fill = (self.tokenizer.pad_token_id or 0) if fill is None else fill
        ids, mask = left_padded(rows, fill), left_padded([torch.ones_like(row) for row in rows], 0)
        return ids.to(device), mask.to(device)

    def start(self, rows: int, with_adapter: bool = False) -> tuple[Any, Cache, int]:
        """What reads prompts: a model, a KV cache, and how many tokens of a trained prefix it holds already.

        Args:
            rows: number of prompts.
            with_adapter: whether an adapter without a memory is on.

        Raises:
            ValueError: an adapter that puts something else before the prompt.
        """
        config = self.model.active_peft_config if with_adapter else None
        if config is None or not config.is_prompt_learning:
            return self.model, DynamicCache(config=self.model.config), 0
        if config.peft_type != PeftType.PREFIX_TUNING:
            raise ValueError(f"{config.peft_type.value} adapters cannot be evaluated here; LoRA and prefix tuning can")
        # peft itself would start every pass with the prefix, and so forget the prompt.
        return self.model.base_model, self.model.get_prompt(rows), config.num_virtual_tokens

    def check_window(self, tokens: int, what: str) -> None:
        """Make sure that so many tokens fit into the model's window.

        Raises:
            ValueError: they do not; names `what`.
        """
        window = getattr(text_config(self.model), "max_position_embeddings", None)
        if window is not None and tokens > window:
            raise ValueError(f"{what} takes {tokens} tokens, and the model's window has {window}; give shorter texts")

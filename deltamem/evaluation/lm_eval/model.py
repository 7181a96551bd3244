"""The model `deltamem` for lm-evaluation-harness: a backbone with an adapter, and a separate memory for each request."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from torch import Tensor

from deltamem.backbones import find_backbone
from deltamem.memory.state import DeltaMemState
from deltamem.model import DeltaMemModel

# The memory that a request sees: none (adapter off); an empty one that stays empty; an empty one that the request writes.
MEMORIES = ("none", "zero", "writing")


@register_model("deltamem")
class DeltaMemLM(HFLM):
    """lm-evaluation-harness's `hf` model with any PEFT adapter or none; each request of a batch has its own memory.

    Args:
        pretrained: the backbone, a folder or a Hub name; or a loaded model, possibly with an adapter.
        memory: "writing" (each request starts with an empty memory and writes it), "zero" (nothing is written), "none" (any
            adapter is off), or a memory of one row that all requests read and none writes. While generating, an adapter that
            writes segments reads the whole prompt, written as one segment. Without a δ-mem adapter, only "none" makes a
            difference.
        options: HFLM's options: `peft` (the adapter), `dtype`, `batch_size`, `device`, ...

    Raises:
        ValueError: `memory` is none of these.
    """

    def __init__(self, pretrained: Any, memory: str | DeltaMemState = "writing", **options: Any) -> None:
        if not isinstance(memory, DeltaMemState) and memory not in MEMORIES:
            raise ValueError(f"memory={memory!r} is not accepted; give one of {', '.join(MEMORIES)}, or a DeltaMemState")
        self.memory = memory
        super().__init__(find_backbone(pretrained) if isinstance(pretrained, str) else pretrained, **options)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with self._opened(inps):
            return super()._model_call(inps, attn_mask, labels)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        with self._opened(context, generation_kwargs["attention_mask"]):
            return super()._model_generate(context, max_length, stop, **generation_kwargs)

    @torch.no_grad()
    def _opened(self, ids: Tensor, prompts: Tensor | None = None) -> AbstractContextManager[Any]:
        """Open a memory for each row of a batch.

        Args:
            ids: the batch, `[rows, tokens]`.
            prompts: the attention mask of rows to be continued; None for rows to be scored in one pass.
        """
        if self.memory == "none":
            return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()
        if not isinstance(getattr(self.model, "base_model", None), DeltaMemModel):
            return nullcontext()
        if isinstance(self.memory, DeltaMemState):
            return self._block(DeltaMemState.stack([self.memory] * len(ids)), write=False)
        memory = self.model.new_memory(len(ids))
        if self.memory == "zero":
            return self._block(memory, write=False)
        if not self.model.active_peft_config.writes_segments:
            return self._block(memory)
        segment_ids = torch.zeros_like(ids)  # a row is one segment
        if prompts is None:
            return self._block(memory, segment_ids=segment_ids)
        with self._block(memory, segment_ids=segment_ids):  # a segment is written once it is complete
            self.model(input_ids=ids, attention_mask=prompts)
        return self._block(memory, write=False)

    def _block(self, memory: DeltaMemState, **options: Any) -> AbstractContextManager[Any]:
        return cast(AbstractContextManager[Any], self.model.memory(memory, **options))

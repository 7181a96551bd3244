"""Reader: runs read passes through a model, computing their common beginning only once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from deltamem.hook.text_decoder import last_place
from deltamem.training.writing import Batch, Outputs, shared_tokens
from deltamem.versions import CACHE


@dataclass(frozen=True)
class Reader:
    """Reads batches that are padded on the right.

    Args:
        columns: positions at which logits are wanted, `[columns]`, ascending.
        beginning: a KV cache of one row that holds the common beginning; None if there is none.
        shared: how many tokens the cache holds.
        hidden: whether to return hidden states as well.
    """

    columns: Tensor
    beginning: Any = None
    shared: int = 0
    hidden: bool = False

    @classmethod
    def behind_beginning(cls, model: nn.Module, batch: Batch, columns: Tensor, hidden: bool = False) -> Reader:
        """Create a reader with a cache of the batch's common beginning, up to where rows differ or logits are wanted.

        A system prompt is most of a short read pass. The memory does not affect the cached beginning.
        """
        shared = shared_tokens(batch, int(columns[0])) if len(columns) else 0
        if not shared:
            return cls(columns, hidden=hidden)
        beginning = batch["input_ids"][:1, :shared]
        output = model(input_ids=beginning, use_cache=True, logits_to_keep=last_place(beginning))
        return cls(columns, output[CACHE], shared, hidden)

    def __call__(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return the model's outputs at the columns, for each read."""
        ids, mask = batch["input_ids"][:, self.shared :], batch["attention_mask"]
        cached: dict[str, Any] = {"use_cache": False}
        if self.shared:
            mask = F.pad(mask[:, self.shared :], (self.shared, 0), value=1)
            cached = {CACHE: copy.deepcopy(self.beginning), "use_cache": True}
            cached[CACHE].batch_repeat_interleave(len(ids))
        columns = self.columns - self.shared
        output = model(
            input_ids=ids, attention_mask=mask, **cached, logits_to_keep=columns, output_hidden_states=self.hidden or None
        )
        return Outputs.from_model(output, columns)

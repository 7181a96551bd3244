"""Training throughput: tokens per second, and the share of padding."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltamem.training.loss import views_in


class Throughput:
    """Counts the tokens of `EpisodeCollator` batches between two logs, on this process.

    A beginning shared by all rows of a batch counts once per row, even if it is computed only once.
    """

    _begun: float | None = None
    _tokens: Any = 0  # kept on the batches' device: reading it would synchronise
    _places = 0

    def count(self, batch: Mapping[str, Any]) -> None:
        """Count a batch that is about to be trained on."""
        if self._begun is None:
            self._begun = time.perf_counter()
        tokens, places = tokens_in(batch)
        self._tokens, self._places = self._tokens + tokens, self._places + places

    def figures(self) -> dict[str, float]:
        """Return `tokens_per_second` (without padding) and the share of `padding` since the last call; empty without batches.

        The clock starts at the first batch after a call, so evaluation and checkpoints are not included.
        """
        if self._begun is None:
            return {}
        tokens, seconds = float(self._tokens), time.perf_counter() - self._begun
        figures = {"tokens_per_second": tokens / seconds, "padding": 1 - tokens / self._places}
        self._begun, self._tokens, self._places = None, 0, 0
        return figures


def tokens_in(batch: Mapping[str, Any]) -> tuple[Tensor, int]:
    """The numbers of tokens, without padding and with it, in all passes of a batch: of chats, or of reads without any."""
    passes = [batch["chats"], *(batch[name] for name in views_in(batch))] if "chats" in batch else [batch]
    masks = [one["attention_mask"] for one in passes]
    return torch.stack([mask.sum() for mask in masks]).sum(), sum(mask.numel() for mask in masks)

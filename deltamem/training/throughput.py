"""How fast training goes: tokens a second, and how much of what is computed is padding."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from deltamem.training.loss import views_in


class Throughput:
    """Counts the tokens of batches of an `EpisodeCollator` from one log to the next, on this process.

    What all rows of a batch begin with is counted in each of them, even where it is passed through the model once.
    """

    _begun: float | None = None
    _tokens: Any = 0  # on the batches' device: to read it would wait for that
    _places = 0

    def count(self, batch: Mapping[str, Any]) -> None:
        """Count a batch that is trained on next."""
        if self._begun is None:
            self._begun = time.perf_counter()
        for part in (batch["chats"], *(batch[name] for name in views_in(batch))):
            mask = part["attention_mask"]
            self._tokens = self._tokens + mask.sum()
            self._places += mask.numel()

    def figures(self) -> dict[str, float]:
        """`tokens_per_second`, without padding, and `padding`, its share, since the last call. Empty if nothing was counted.

        Time between two calls counts from the first batch on, so without evaluation and checkpoints.
        """
        if self._begun is None:
            return {}
        tokens, seconds = float(self._tokens), time.perf_counter() - self._begun
        figures = {"tokens_per_second": tokens / seconds, "padding": 1 - tokens / self._places}
        self._begun, self._tokens, self._places = None, 0, 0
        return figures

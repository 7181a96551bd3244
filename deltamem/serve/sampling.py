"""Chooses the next token of one answer from its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem.serve.turn import Sampling, TokenChoice


class Sampler:
    """Draws the tokens of one answer. Each answer has its own generator, so it does not depend on who else is in the batch."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> TokenChoice:
        """Choose a token.

        Args:
            logits: `[vocabulary]`.
        """
        logits = logits.float()
        token = int(logits.argmax()) if self._sampling.temperature == 0 else self._draw(logits)
        if self._sampling.logprobs is None:
            return TokenChoice(token)
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(self._sampling.logprobs)
        return TokenChoice(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _draw(self, logits: Tensor) -> int:
        smallest = torch.finfo(torch.float32).tiny
        # Below the largest logit, and not by 0 in this precision: a temperature of almost 0 then draws the likeliest token.
        scaled = (logits - logits.max()) / max(self._sampling.temperature, smallest)
        probabilities, ids = scaled.softmax(-1).sort(descending=True)  # [vocabulary]
        # Keep the fewest tokens that together reach top_p, at least one.
        probabilities[probabilities.cumsum(-1) - probabilities >= self._sampling.top_p] = 0
        probabilities[0] = probabilities[0].clamp(min=smallest)
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])

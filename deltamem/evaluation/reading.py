"""Prompts that a model has read: the likelihood of continuations, and generation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from deltamem.hook.text_decoder import last_place
from deltamem.versions import CACHE

# Chooses next tokens `[rows]`, given log-probabilities `[rows, vocabulary]` and the rows' prompt indices.
Choose = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass
class Reading:
    """Prompts after one pass of a model, with any open memory.

    Args:
        model: the model that read them.
        cache: their KV cache, which also carries a memory.
        mask: `[rows, tokens]`, the attention mask of the cached tokens.
        predicted: log-probabilities of the next token, `[rows, vocabulary]`.
    """

    model: Any
    cache: Cache
    mask: Tensor
    predicted: Tensor

    @classmethod
    @torch.no_grad()
    def from_prompt(cls, model: Any, ids: Tensor, mask: Tensor, cache: Cache, before: int = 0) -> Reading:
        """Read prompts.

        Args:
            model: the model to read them.
            ids, mask: `[rows, tokens]`, padded on the left.
            cache: empty, or with a prefix common to all prompts.
            before: the length of that prefix in tokens.
        """
        mask = F.pad(mask, (before, 0), value=1)
        positions = mask.cumsum(1).sub(1).clamp(min=0)[:, before:]
        return cls(model, cache, mask, _log_probs(model, ids, mask, positions, cache))

    @torch.no_grad()
    def log_likelihoods(self, continuations: Sequence[Sequence[Tensor]]) -> list[list[float]]:
        """Compute the log-likelihood of continuations of each prompt, in nats; the reading stays usable.

        Args:
            continuations: token ids, `[tokens]` each; any number per prompt.
        """
        device = self.mask.device
        every = [continuation for several in continuations for continuation in several]
        prompts = [prompt for prompt, several in enumerate(continuations) for _ in several]
        lengths = torch.tensor([len(continuation) for continuation in every], dtype=torch.long, device=device)
        targets = pad_sequence(every, batch_first=True).to(device)  # [continuations, tokens]
        rows = torch.tensor(prompts, dtype=torch.long, device=device)
        cache, mask = copy.deepcopy(self.cache), self.mask[rows]
        cache.batch_select_indices(rows)
        scores = self.predicted[rows].gather(1, targets[:, :1]).squeeze(1)
        rows = torch.arange(len(every), device=device)  # the continuations that have tokens left
        for position in range(1, targets.shape[1]):
            longer = (lengths[rows] > position).nonzero().squeeze(1)
            mask = F.pad(_kept(cache, mask, longer), (0, 1), value=1)
            rows = rows[longer]
            predicted = _next(self.model, targets[rows, position - 1], mask, cache)
            scores[rows] += predicted.gather(1, targets[rows, position, None]).squeeze(1)
        found = iter(scores.tolist())
        return [[next(found) for _ in several] for several in continuations]

    @torch.no_grad()
    def say(self, most: int, ends: Collection[int], choose: Choose) -> list[list[int]]:
        """Generate an answer to each prompt, as token ids without the end token; the reading stays usable.

        Args:
            most: maximum number of tokens.
            ends: ids of the tokens that end an answer.
            choose: chooses the next tokens.
        """
        said: list[list[int]] = [[] for _ in self.predicted]
        talking = list(range(len(said)))
        cache, mask, predicted = copy.deepcopy(self.cache), self.mask, self.predicted
        for _ in range(most):
            tokens = choose(predicted, talking)
            goes_on = [place for place, token in enumerate(tokens.tolist()) if token not in ends]
            for place in goes_on:
                said[talking[place]].append(int(tokens[place]))
            talking = [talking[place] for place in goes_on]
            if not talking or len(said[talking[0]]) == most:
                break
            kept = torch.tensor(goes_on, dtype=torch.long, device=mask.device)
            mask = F.pad(_kept(cache, mask, kept), (0, 1), value=1)
            predicted = _next(self.model, tokens[kept], mask, cache)
        return said


def _kept(cache: Cache, mask: Tensor, rows: Tensor) -> Tensor:
    """The mask of the rows that continue; the others are dropped from the cache, which is copied only in that case."""
    if len(rows) < len(mask):
        cache.batch_select_indices(rows)
    return mask[rows]


def _next(model: Any, tokens: Tensor, mask: Tensor, cache: Cache) -> Tensor:
    """Log-probabilities `[rows, vocabulary]` after one more token per row, `[rows]`."""
    return _log_probs(model, tokens[:, None], mask, mask.sum(1, keepdim=True) - 1, cache)


def _log_probs(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """Log-probabilities of the next token: `[rows, tokens]` to `[rows, vocabulary]`."""
    last = last_place(ids)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, **{CACHE: cache}, logits_to_keep=last)
    return output.logits[:, -1].float().log_softmax(-1)

"""Chooses the next token: greedily, or by sampling with a seed per question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from deltamem.evaluation.reading import Choose


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters, under transformers' names."""

    temperature: float
    top_p: float
    top_k: int


def greedy(predicted: Tensor, rows: Sequence[int]) -> Tensor:
    """The most likely tokens, `[rows]`."""
    return predicted.argmax(1)


def sampled(sampling: Sampling, seeds: Sequence[int]) -> Choose:
    """Create a sampler whose draws for a row depend on the row's seed alone, not on its batch.

    Args:
        sampling: the sampling parameters.
        seeds: one seed per row.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)])

    def choose(predicted: Tensor, rows: Sequence[int]) -> Tensor:
        likeliest, tokens = predicted.topk(sampling.top_k)  # top-k first, so that the rest need not be sorted: [rows, top_k]
        shares = warpers(tokens, likeliest).softmax(1).cpu()
        drawn = [torch.multinomial(share, 1, generator=generators[row]) for share, row in zip(shares, rows, strict=True)]
        return tokens.gather(1, torch.stack(drawn).to(tokens.device)).squeeze(1)

    return choose

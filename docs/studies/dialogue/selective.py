"""Gates that select from the start: the slowest state of each layer opens at what is asked for later.

A step's gradient hardly moves a gate, whose effect shows over hundreds of tokens. Which words of a history are asked for is
known, however, and a linear map of the hidden states tells them from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from episodes import Item, Maker, Sources, draw_questions
from torch import Tensor
from write_rows import WriteRows

from deltamem.layer import DeltaMemLayer

OPEN, SHUT = 0.0, -7.0  # mean logits of β at what is asked for later, and at other tokens
KEEP = 10.0  # logit of λ: half of a state is left after 15,000 tokens
VALUES = 0.4  # factor of the values, which a wider gate writes more of
RIDGE = 1e-2
FACTS, MOST_FACTS, SERVICES, WRITTEN = 64, 4, 48, 256  # histories of facts, and dialogues with a service of so many tokens


def asked_items(maker: Maker, sources: Sources) -> list[Item]:
    """Histories with questions, of which only the values are asked for."""
    rng, items = maker.rng, []
    for _ in range(FACTS):
        asked = draw_questions(rng, rng.randint(1, MOST_FACTS), "train", maker.words, 0.25)
        items.append(maker.questions(asked, "train", MOST_FACTS, value_only=True))
    services = sources.talks(held_out=False)["sgd"]
    while len(items) < FACTS + SERVICES:
        with suppress(ValueError):  # nothing that was agreed on was said so early
            items.append(maker.slots(rng.choice(services), WRITTEN, MOST_FACTS, value_only=True))
    return items


@torch.no_grad()
def open_at_answers(memories: Sequence[DeltaMemLayer], items: Sequence[Item]) -> None:
    """Set the gates of the slowest state of each layer.

    Args:
        memories: the layers, whose decay is learned.
        items: histories with questions, of which only the values are asked for.
    """
    answers = torch.cat([item.answers for item in items])
    for layer, hidden in zip(memories, torch.cat([item.attended for item in items], 1).float(), strict=True):
        rows, (direction, bias) = WriteRows.from_layer(layer), separate(hidden, answers)
        rows.logits[-1], rows.bias[-1], rows.kept[-1] = direction, bias, KEEP
        rows.values[-1] *= VALUES


def separate(hidden: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """A linear map of hidden states `[T, W]`, on average `OPEN` at chosen ones and `SHUT` at others: `[W]` and a bias."""
    middle = (hidden[chosen].mean(0) + hidden[~chosen].mean(0)) / 2
    centred, share = hidden - middle, chosen.float().mean()
    weighted = centred * torch.where(chosen, 0.5 / share, 0.5 / (1 - share))[:, None]  # both kinds count for a half
    moments = weighted.T @ centred / len(hidden)
    ridge = RIDGE * moments.diagonal().mean() * torch.eye(len(moments))
    direction = torch.linalg.solve(moments + ridge, weighted.T @ (2.0 * chosen - 1) / len(hidden))
    found = hidden @ direction
    opened, shut = found[chosen].mean(), found[~chosen].mean()
    scale = (OPEN - SHUT) / (opened - shut)
    return direction * scale, SHUT - shut * scale

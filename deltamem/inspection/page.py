"""Renders the page of `deltamem inspect --html`: a self-contained file that shows memories and a conversation."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltamem.html.page import render, spread
from deltamem.inspection.conversation import Measures, Turn
from deltamem.inspection.layer_names import short_names
from deltamem.inspection.memory import effective_rank
from deltamem.io.files import write_atomically
from deltamem.memory.state import DeltaMemState

# Limits that keep a page at a few megabytes. Beyond them, turns, tokens or states are thinned out, and the page says so.
MOST_TURNS, MOST_CELLS, MOST_STATE_NUMBERS = 60, 2000, 1_000_000
INT16 = 32767


def write_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    memories: Mapping[str, DeltaMemState],
    turns: Sequence[Turn] = (),
    measures: Measures | None = None,
) -> None:
    """Write the page.

    Args:
        path: the file, replaced atomically.
        title: the page's title.
        facts: general facts, shown as a list.
        memories: memories of one row, under their display names, in display order.
        turns: a conversation, if any; the memory after each turn is shown before `memories`.
        measures: the conversation's measures.

    Raises:
        ValueError: the path leads to something other than a regular file.
        OSError: the file cannot be written; an existing one is untouched.
    """
    notes: list[str] = []
    data = {
        "memories": _memories({_name(index, turn): turn.memory for index, turn in enumerate(turns)} | {**memories}, notes),
        "conversation": measures and _conversation(turns, measures, notes),
    }
    write_atomically(path, render("deltamem.inspection", title, facts, notes, data=data).encode("utf-8"), private=False)


def _name(index: int, turn: Turn) -> str:
    return f"after turn {index + 1} ({turn.role})"


def _memories(memories: Mapping[str, DeltaMemState], notes: list[str]) -> dict[str, Any]:
    """Data of the memories to show: by layer, their states `[memories, states, r, r]`, norms and effective ranks."""
    numbers = sum(tensor.numel() for tensor in next(iter(memories.values())).tensors.values())
    kept = spread(len(memories), min(MOST_TURNS, max(MOST_STATE_NUMBERS // numbers, 2)))
    if len(kept) < len(memories):
        notes.append(f"{len(kept)} of the {len(memories)} memories are shown.")
    names, states = ([*part] for part in zip(*([*memories.items()][index] for index in kept), strict=True))
    layers = []
    for name in states[0].tensors:
        tensor = torch.cat([state.matrices[name].cpu() for state in states])
        ranks = effective_rank(torch.linalg.svdvals(tensor)).mean(1)
        norms = tensor.flatten(1).norm(dim=1)
        layers.append({"states": _packed(tensor), "norms": _rounded(norms), "ranks": _rounded(ranks)})
    return {
        "names": names,
        "tokens": [state.tokens[0] for state in states],
        "layer_names": short_names([*states[0].tensors]),
        "layers": layers,
    }


def _conversation(turns: Sequence[Turn], measures: Measures, notes: list[str]) -> dict[str, Any]:
    """Data of a conversation: its measures by token, in cells, and by turn."""
    shown = spread(len(turns), MOST_TURNS)
    if len(shown) < len(turns):
        notes.append(f"The tables show {len(shown)} of the {len(turns)} turns.")
    lengths = [len(turn.pieces) for turn in turns]
    step = -(-sum(lengths) // MOST_CELLS)
    if step > 1:
        notes.append(f"Of the {sum(lengths):,} tokens, {step} neighbours are shown as one, with the mean of their figures.")
    begins = torch.tensor([0, *lengths], dtype=torch.long, device="cpu").cumsum(0).tolist()
    spans = [(begin, min(begin + step, end)) for turn_begin, end in pairwise(begins) for begin in range(turn_begin, end, step)]
    pieces = [piece for turn in turns for piece in turn.pieces]
    marks = [mark for turn in turns for mark in turn.marks]

    def by_cell(measured: Tensor) -> Tensor:
        """Average `[rows, tokens]` to `[rows, cells]`."""
        return torch.stack([measured[:, begin:end].mean(1) for begin, end in spans], dim=1)

    def by_turn(measured: Tensor) -> Tensor:
        """Average `[rows, tokens]` to `[rows, turns shown]`."""
        return torch.stack([measured[:, begins[turn] : begins[turn + 1]].mean(1) for turn in shown], dim=1)

    return {
        "turns": [{"role": turn.role, "cells": -(-length // step)} for turn, length in zip(turns, lengths, strict=True)],
        "pieces": ["".join(pieces[begin:end]) for begin, end in spans],
        "marks": [all(marks[begin:end]) for begin, end in spans],
        "cells": {
            "gate": _packed(by_cell(measures.gate)),
            "change": _packed(by_cell(measures.change)),
            "error": _packed(by_cell(measures.error)),
        },
        "shown": shown,
        "by_turn": {
            "gate": _packed(by_turn(measures.gate)),
            "change": _packed(measures.turn_change[:, shown]),
            "error": _packed(by_turn(measures.error)),
        },
        "left": _packed(measures.left[:, shown][:, :, shown]),
    }


def _packed(tensor: Tensor) -> dict[str, Any]:
    """Encode a tensor as base64 of 16-bit integers, to be multiplied by `scale`."""
    most = tensor.abs().max().item() if tensor.numel() else 0.0
    scale = most / INT16 or 1.0
    numbers = (tensor / scale).round().to(torch.int16).contiguous().numpy().astype("<i2")
    return {"shape": [*tensor.shape], "scale": scale, "data": base64.b64encode(numbers.tobytes()).decode()}


def _rounded(tensor: Tensor) -> list[float]:
    return [float(f"{number:.4g}") for number in tensor.tolist()]

"""A conversation, written to a memory turn by turn, with all that its tokens wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel
from rich.progress import track
from torch import Tensor
from transformers import DynamicCache

from deltamem.chat.tokens import ChatTokens, Message, check_messages, render
from deltamem.forward.kv_cache import CACHE
from deltamem.hook.text_decoder import last_place, text_config
from deltamem.inspection.writes import LayerWrites, left_of, writes_of
from deltamem.memory.state import DeltaMemState


@dataclass(frozen=True)
class Turn:
    """One message, and what it wrote.

    Args:
        role, content: of the message.
        pieces: its tokens as text, with what the chat template puts around the message.
        writes: what it wrote, by attention module, with one batch row.
        memory: the memory after it.
    """

    role: str
    content: str
    pieces: list[str]
    writes: dict[str, LayerWrites]
    memory: DeltaMemState


def replay(model: PeftModel, tokenizer: Any, messages: Sequence[Message], show_progress: bool = False) -> list[Turn]:
    """Write a conversation to an empty memory, one message at a time, each as the continuation of the context.

    Args:
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer, with a chat template.
        messages: the conversation. A system prompt is a part of the first turn.
        show_progress: whether to draw a progress bar.

    Raises:
        ValueError: no chat; one longer than the model's context; a chat template that renders earlier turns otherwise when
            another one follows.
    """
    check_messages(messages)
    first = 2 if messages[0]["role"] == "system" and len(messages) > 1 else 1
    unit = model.active_peft_config.write
    chats = [ChatTokens.of(tokenizer, messages[:end], unit) for end in range(first, len(messages) + 1)]
    pieces = _pieces(tokenizer, render(tokenizer, messages))
    begins = [0, *(len(chat.ids) for chat in chats)]
    _check(model, chats, begins)
    cache, memory = DynamicCache(config=model.config), model.new_memory()
    turns = []
    steps = [*zip(messages[first - 1 :], chats, begins, begins[1:], strict=False)]
    for message, chat, begin, end in track(steps, "turns", transient=True, disable=not show_progress):
        new = chat.slice(begin, end)
        ids = new.ids[None].to(model.device)
        segment_ids = new.segment_ids[None].to(model.device) if model.active_peft_config.writes_segments else None
        with model.memory(memory, segment_ids=segment_ids):
            written = writes_of(model, input_ids=ids, **{CACHE: cache}, use_cache=True, logits_to_keep=last_place(ids))
        turns.append(Turn(message["role"], message["content"], pieces[begin:end], written, memory.clone()))
    return turns


def _pieces(tokenizer: Any, text: str) -> list[str]:
    """The text of each token with what was dropped before it; of several that share a character, the first has it."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [text[begin:end] for begin, end in pairwise([0, *(end for _, end in offsets)])]


def _check(model: PeftModel, chats: Sequence[ChatTokens], begins: Sequence[int]) -> None:
    whole = chats[-1].ids
    window = getattr(text_config(model), "max_position_embeddings", None)
    if window is not None and len(whole) > window:
        raise ValueError(f"the conversation has {len(whole)} tokens, more than the model's context, {window}; shorten it")
    if not all(torch.equal(chat.ids, whole[:end]) for chat, end in zip(chats, begins[1:], strict=True)):
        raise ValueError(
            "the tokenizer's chat template renders earlier turns otherwise when another one follows, so they cannot be written "
            "turn by turn"
        )


# ------------------------------------------------------------------------------------------------------- its measures


@dataclass(frozen=True)
class Measures:
    """What a conversation wrote, in numbers. The first of `rows` is all layers together, the others are one layer each.

    Args:
        layers: the names of the attention modules, `rows - 1` of them.
        gate: how far each token opened the write gate, the mean over its states, `[rows, tokens]`.
        change: the norm of the change of the states that each token made, `[rows, tokens]`.
        error: the length of the delta rule's error of each token, `[rows, tokens]`.
        turn_change: the norm of the change that each turn made in the end, `[rows, turns]`.
        left: `[rows, turns, turns]`, at `[:, i, j]` how much of what turn j wrote is left after turn i, as a share of the norm
            that it had when turn j ended; zero before that.

    A token that is not written has zeros; those of one segment (SSW) share their write.
    """

    layers: list[str]
    gate: Tensor
    change: Tensor
    error: Tensor
    turn_change: Tensor
    left: Tensor


def measure(turns: Sequence[Turn]) -> Measures:
    """The measures of a conversation."""
    layers = [*turns[0].writes]
    gates, changes, errors = [], [], []
    for turn in turns:
        for layer in layers:
            own = turn.writes[layer]
            gates.append(_by_token(own.gate.mean(1), own))
            changes.append(_by_token(own.change.norm(dim=1), own))
            errors.append(_by_token(own.error.norm(dim=(1, 3)), own))
    by_layer = [_joined(measured, len(layers)) for measured in (gates, changes, errors)]
    before = [turns[0].writes[layer].start for layer in layers]
    norms = []
    for turn in turns:
        after = [turn.memory.tensors[layer] for layer in layers]
        norms.append(torch.stack([(new - old).norm() for new, old in zip(after, before, strict=True)]))
        before = after
    left = torch.stack([_left([turn.writes[layer] for turn in turns]) for layer in layers])  # [layers, turns, turns]
    return Measures(
        layers,
        gate=torch.cat([by_layer[0].mean(0, keepdim=True), by_layer[0]]),
        change=_with_all(by_layer[1]),
        error=_with_all(by_layer[2]),
        turn_change=_with_all(torch.stack(norms, dim=1)),
        left=_shares(_with_all(left)),
    )


def _by_token(of_writes: Tensor, own: LayerWrites) -> Tensor:
    """`[1, writes]` to `[tokens]`, zero where nothing is written."""
    index = own.write_of_token[0]
    padded = torch.cat([of_writes[0], of_writes.new_zeros(1)])  # -1 is the last one
    return padded[index].cpu()


def _joined(measured: list[Tensor], layers: int) -> Tensor:
    """One tensor for each turn and layer to `[layers, tokens]`."""
    return torch.stack([torch.cat(measured[layer::layers]) for layer in range(layers)])


def _left(passes: Sequence[LayerWrites]) -> Tensor:
    """The norms of what is left of each turn after each turn, `[turns, turns]`."""
    norms = torch.zeros(len(passes), len(passes), dtype=torch.float32, device="cpu")
    for index, parts in enumerate(left_of(passes)):
        norms[index, : index + 1] = parts[1:].flatten(1).norm(dim=1)
    return norms


def _shares(norms: Tensor) -> Tensor:
    """Norms `[rows, turns, turns]` as shares of those on the diagonal, zero where nothing was written."""
    at_first = norms.diagonal(dim1=1, dim2=2)[:, None]
    return torch.where(at_first > 0, norms / at_first, 0.0)


def _with_all(by_layer: Tensor) -> Tensor:
    """Norms by layer, with that of all layers before them: `[layers, ...]` to `[1 + layers, ...]`."""
    return torch.cat([by_layer.norm(dim=0, keepdim=True), by_layer])


def conversation_figures(turns: Sequence[Turn], measures: Measures) -> dict[str, Any]:
    """The measures by turn, as `deltamem inspect ADAPTER --chat CHAT --json` prints them.

    Returns:
        `layers`, names; `turns`, for each its message, how many `tokens` it has, and lists whose first entry is all layers
        together, the others one layer each: the mean `write_gate` and `error` of its tokens, the `change` it made, and
        `left`, one list for each turn up to it: what is left of that turn after this one.
    """
    figures = []
    begin = 0
    for index, turn in enumerate(turns):
        end = begin + len(turn.pieces)
        figures.append(
            {
                "role": turn.role,
                "content": turn.content,
                "tokens": len(turn.pieces),
                "write_gate": measures.gate[:, begin:end].mean(1).tolist(),
                "error": measures.error[:, begin:end].mean(1).tolist(),
                "change": measures.turn_change[:, index].tolist(),
                "left": measures.left[:, index, : index + 1].T.tolist(),
            }
        )
        begin = end
    return {"layers": measures.layers, "turns": figures}

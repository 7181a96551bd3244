"""Writes a conversation to a memory turn by turn, recording what each token writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

from deltamem.chat.message_places import message_places
from deltamem.chat.tokens import ChatTokens, Message, check_messages, render
from deltamem.hook.text_decoder import last_place, text_config
from deltamem.inspection.writes import LayerWrites, left_of, writes_of
from deltamem.io.progress import work_progress
from deltamem.memory.state import DeltaMemState
from deltamem.versions import CACHE


@dataclass(frozen=True)
class Turn:
    """One message and its writes.

    Args:
        role, content: the message.
        pieces: its tokens as text, including what the chat template puts around the message.
        marks: for each token, whether it is the template's or belongs to a system prompt, so that no message contains it.
        writes: its writes by attention module, with one batch row.
        memory: the memory after the message.
    """

    role: str
    content: str
    pieces: list[str]
    marks: list[bool]
    writes: dict[str, LayerWrites]
    memory: DeltaMemState


def replay(model: PeftModel, tokenizer: Any, messages: Sequence[Message]) -> list[Turn]:
    """Write a conversation to an empty memory, one message at a time, each continuing the context.

    Args:
        model: a model with a δ-mem adapter.
        tokenizer: its tokenizer, with a chat template.
        messages: the conversation; a system prompt is part of the first turn.

    Raises:
        ValueError: it is not a chat; it exceeds the model's context; the chat template renders earlier turns differently once
            another follows.
    """
    check_messages(messages)
    first = 2 if messages[0]["role"] == "system" and len(messages) > 1 else 1
    unit = model.active_peft_config.write
    chats = [ChatTokens.from_messages(tokenizer, messages[:end], unit) for end in range(first, len(messages) + 1)]
    pieces, marks = _pieces(tokenizer, messages)
    begins = [0, *(len(chat.ids) for chat in chats)]
    _check(model, chats, begins)
    cache, memory = DynamicCache(config=model.config), model.new_memory()
    turns = []
    steps = [*zip(messages[first - 1 :], chats, begins, begins[1:], strict=False)]
    with work_progress() as progress:
        for message, chat, begin, end in progress.track(steps, description="turns"):
            new = chat.slice(begin, end)
            ids = new.ids[None].to(model.device)
            segment_ids = new.segment_ids[None].to(model.device) if model.active_peft_config.writes_segments else None
            with model.memory(memory, segment_ids=segment_ids):
                written = writes_of(model, input_ids=ids, **{CACHE: cache}, use_cache=True, logits_to_keep=last_place(ids))
            turns.append(
                Turn(message["role"], message["content"], pieces[begin:end], marks[begin:end], written, memory.clone())
            )
    return turns


def _pieces(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[str], list[bool]]:
    """The text of each token, and whether it lies outside of all messages.

    The text includes anything dropped before the token; a character shared by several tokens goes to the first.
    """
    text = render(tokenizer, messages)
    places = [place for place in message_places(partial(render, tokenizer), messages, text) if place is not None]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans = [*pairwise([0, *(end for _, end in offsets)])]
    marks = [not any(begin < place_end and end > place_begin for place_begin, place_end in places) for begin, end in spans]
    return [text[begin:end] for begin, end in spans], marks


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
    """Measurements of a conversation's writes. The first of `rows` is for all layers together, the others for single layers.

    Args:
        layers: the names of the attention modules, `rows - 1` of them.
        gate: each token's write gate, averaged over the states, `[rows, tokens]`.
        change: the norm of each token's change of the states, `[rows, tokens]`.
        error: the norm of each token's delta-rule error, `[rows, tokens]`.
        turn_change: the norm of each turn's total change, `[rows, turns]`.
        left: `[rows, turns, turns]`; at `[:, i, j]`, how much of turn j's writes is left after turn i, relative to their norm
            at the end of turn j; zero before that.

    Tokens that are not written have zeros; tokens of one segment (SSW) share its write.
    """

    layers: list[str]
    gate: Tensor
    change: Tensor
    error: Tensor
    turn_change: Tensor
    left: Tensor


def measure(turns: Sequence[Turn]) -> Measures:
    """Compute the measures of a conversation."""
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
    """Expand `[1, writes]` to `[tokens]`, with zeros for tokens that are not written."""
    index = own.write_of_token[0]
    padded = torch.cat([of_writes[0], of_writes.new_zeros(1)])  # index -1 selects the zero
    return padded[index].cpu()


def _joined(measured: list[Tensor], layers: int) -> Tensor:
    """Join one tensor per turn and layer into `[layers, tokens]`."""
    return torch.stack([torch.cat(measured[layer::layers]) for layer in range(layers)])


def _left(passes: Sequence[LayerWrites]) -> Tensor:
    """The norms of what is left of each turn after each turn, `[turns, turns]`."""
    norms = torch.zeros(len(passes), len(passes), dtype=torch.float32, device="cpu")
    for index, parts in enumerate(left_of(passes)):
        norms[index, : index + 1] = parts[1:].flatten(1).norm(dim=1)
    return norms


def _shares(norms: Tensor) -> Tensor:
    """Divide norms `[rows, turns, turns]` by those on the diagonal; zero if nothing was written."""
    at_first = norms.diagonal(dim1=1, dim2=2)[:, None]
    return torch.where(at_first > 0, norms / at_first, 0.0)


def _with_all(by_layer: Tensor) -> Tensor:
    """Prepend the norm over all layers to norms by layer: `[layers, ...]` to `[1 + layers, ...]`."""
    return torch.cat([by_layer.norm(dim=0, keepdim=True), by_layer])


def conversation_figures(turns: Sequence[Turn], measures: Measures) -> dict[str, Any]:
    """Summarise the measures by turn, for `deltamem inspect ADAPTER --chat CHAT --json`.

    Returns:
        `layers`, their names; `turns`, for each its message, its number of `tokens`, and lists whose first entry is for all
        layers together and whose others are for single layers: the mean `write_gate` and `error` of its tokens, its `change`,
        and `left`, with one list for each turn so far: what is left of that turn after this one.
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

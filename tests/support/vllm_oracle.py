"""What vLLM is compared with: transformers with this library, one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import DynamicCache

from deltamem import DeltaMemState
from deltamem.vllm.request import Write

# A token that no model of the tests has.
NO_TOKEN = 1_000_000


class Answered(NamedTuple):
    """The tokens of an answer, and the memory after the request; the one before it if nothing was written."""

    tokens: list[int]
    memory: DeltaMemState | None


def answered(
    model: PeftModel,
    memory: DeltaMemState | None,
    prompt: Sequence[int],
    length: int,
    write: Write,
    stop: int | None = None,
    known: int = 0,
) -> Answered:
    """Answer a request greedily.

    Args:
        model: a model with an adapter.
        memory: the memory before the request; empty if None.
        prompt: its tokens.
        length: the most tokens of the answer.
        write: when the request is written.
        stop: the token at which the answer ends, which belongs to it; None for none.
        known: how many of the prompt's tokens are read and not written.
    """
    if write == "prompt":
        return Answered([], written(model, memory, prompt, known))
    before = model.new_memory() if memory is None else memory
    ids, cache, now = torch.tensor([prompt]), DynamicCache(config=model.config), before.clone()
    given = {"max_new_tokens": length, "min_new_tokens": 0, "do_sample": False, "pad_token_id": 0, "past_key_values": cache}
    with torch.no_grad():
        if write == "during" and known:
            with model.memory(now, write=False):
                model(input_ids=ids[:, :known], past_key_values=cache)
        with model.memory(now, write=write == "during"):
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), eos_token_id=NO_TOKEN if stop is None else stop, **given
            )
    tokens = output[0, len(prompt) :].tolist()
    return Answered(tokens, written(model, memory, [*prompt, *tokens], known) if write else memory)


def written(model: PeftModel, memory: DeltaMemState | None, tokens: Sequence[int], known: int = 0) -> DeltaMemState:
    """The memory after one pass over tokens, of which the first are only read."""
    after, ids, cache = model.new_memory() if memory is None else memory.clone(), torch.tensor([tokens]), None
    with torch.no_grad():
        if known:
            cache = DynamicCache(config=model.config)
            with model.memory(after, write=False):
                model(input_ids=ids[:, :known], past_key_values=cache)
        with model.memory(after):
            model(input_ids=ids[:, known:], past_key_values=cache, use_cache=cache is not None)
    return after

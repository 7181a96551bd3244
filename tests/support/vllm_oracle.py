"""What vLLM is compared with: transformers with this library, one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from peft import PeftModel

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
) -> Answered:
    """Answer a request greedily.

    Args:
        model: a model with an adapter.
        memory: the memory before the request; empty if None.
        prompt: its tokens.
        length: the most tokens of the answer.
        write: when the request is written.
        stop: the token at which the answer ends, which belongs to it; None for none.
    """
    before = model.new_memory() if memory is None else memory
    ids = torch.tensor([prompt])
    with torch.no_grad(), model.memory(before.clone(), write=write == "during"):
        given = {"max_new_tokens": length, "min_new_tokens": 0, "do_sample": False, "pad_token_id": 0}
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), eos_token_id=NO_TOKEN if stop is None else stop, **given
        )
    tokens = output[0, len(prompt) :].tolist()
    return Answered(tokens, written(model, memory, [*prompt, *tokens]) if write else memory)


def written(model: PeftModel, memory: DeltaMemState | None, tokens: Sequence[int]) -> DeltaMemState:
    """The memory after one pass over tokens."""
    after = model.new_memory() if memory is None else memory.clone()
    with torch.no_grad(), model.memory(after):
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    return after

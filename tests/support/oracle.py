"""The law that every way of running a model is held to, and its oracle.

The memory and the logits of a row depend only on the memory at the start and on that row's valid tokens. So whatever was done
is compared with a replay: a fresh memory and one pass over that row's tokens alone, without padding.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import PAD, random_tokens, tiny_adapted
from torch import Tensor

from deltamem import DeltaMemState
from deltamem.forward import call
from deltamem.forward.kv_cache import MemoryCacheLayer

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": PAD}
TOLERANCE = 1e-5


def adapted(model_type: str = "llama", attn: str = "eager", **options: Any) -> PeftModel:
    """A tiny model whose memory is felt: its corrections are strong enough to change what is generated."""
    model = tiny_adapted(model_type=model_type, attn=attn, **options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".delta_mem_q." in name or ".delta_mem_o." in name:
                weight *= 3
    return model


def replay(model: PeftModel, tokens: Tensor, start: DeltaMemState | None = None) -> DeltaMemState:
    """The memory after one pass over a row's tokens `[tokens]`."""
    state = model.new_memory() if start is None else start.clone()
    with torch.no_grad(), model.memory(state):
        model(input_ids=tokens[None], use_cache=False)
    return state


def logits_of(model: PeftModel, tokens: Tensor, start: DeltaMemState | None = None) -> Tensor:
    """The logits `[tokens, vocabulary]` of one pass over a row's tokens."""
    state = model.new_memory() if start is None else start.clone()
    with torch.no_grad(), model.memory(state):
        return model(input_ids=tokens[None], use_cache=False).logits[0]


def told(model: PeftModel, rows: int = 1, seed: int = 100) -> DeltaMemState:
    """A memory in which every row was told something else."""
    state = model.new_memory(rows)
    with torch.no_grad(), model.memory(state):
        model(input_ids=random_tokens(rows, 12, seed=seed), use_cache=False)
    return state


def error(first: DeltaMemState | Mapping[str, Tensor], second: DeltaMemState | Mapping[str, Tensor]) -> float:
    """The largest difference between two memories."""
    one, other = (part.tensors if isinstance(part, DeltaMemState) else part for part in (first, second))
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def rows_in(cache: Any) -> list[dict[str, Tensor]]:
    """The memories that a cache carries, one for each row."""
    carried = MemoryCacheLayer.find(cache)
    assert carried is not None
    assert carried.snapshot is not None
    return [{n: t[row : row + 1] for n, t in carried.snapshot.states().items()} for row in range(carried.snapshot.rows)]


def tokens_in(cache: Any) -> list[int]:
    """How many tokens were written to each of them."""
    carried = MemoryCacheLayer.find(cache)
    assert carried is not None
    assert carried.snapshot is not None
    return carried.snapshot.tokens.tolist()


def left_padded(*rows: Tensor) -> dict[str, Tensor]:
    """Rows `[tokens]` of different length as one batch, padded on the left."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, length - len(row) :], mask[index, length - len(row) :] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def decode_steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The decode steps of passes of one token from now on, pass by pass; None for a pass that was none."""
    found, make = [], call._decode_step

    def spy(owner: Any, new: Tensor, options: dict[str, Any]) -> Any:
        step = make(owner, new, options)
        if new.shape[1] == 1:
            found.append(step)
        return step

    monkeypatch.setattr(call, "_decode_step", spy)
    return found

"""Holds a model with a memory to the law, whatever its backbone is made of."""

import torch
from oracle import GREEDY, TOLERANCE, error, left_padded, logits_of, replay, told
from tiny import random_tokens

# Where a family's projections lie: each in its own module (Llama), or packed into one, piece by piece (Phi 3) or head by head
# (GPT-NeoX). This sets families apart where weights are quantised or adapted by another method.
PROJECTIONS = ("llama", "phi3", "gpt_neox")
ROWS = (random_tokens(1, 5, seed=5)[0], random_tokens(1, 9, seed=9)[0])


def tolerance_for(dtype):
    """In half precision another order of summing moves numbers by their last place; those around 1, by this much."""
    return TOLERANCE if dtype == torch.float32 else torch.finfo(dtype).eps


def generate(model, rows=ROWS, **options):
    """What was generated, and the memory after it."""
    state = model.new_memory(len(rows))
    with model.memory(state):
        tokens = model.generate(**left_padded(*rows), **{**GREEDY, **options})
    return tokens[:, -GREEDY["max_new_tokens"] :], state


def check_passes(model, tolerance=TOLERANCE):
    """Hold one pass over a left-padded batch to the law."""
    state, unmasked, batch = model.new_memory(2), model.new_memory(2), left_padded(*ROWS)
    with torch.no_grad(), model.memory(state):
        logits = model(**batch).logits
    with torch.no_grad(), model.memory(unmasked):
        model(input_ids=batch["input_ids"])
    assert state.tokens == [len(row) for row in ROWS]
    assert all(tensor.dtype == torch.float32 for tensor in state.tensors.values())
    for row, tokens in enumerate(ROWS):
        assert error(state[row], replay(model, tokens)) <= tolerance
        assert (logits[row, -len(tokens) :] - logits_of(model, tokens)).abs().max() <= tolerance
    # The controls: padding that counts, and a memory that was told something, are more than this tolerance lets pass.
    assert error(unmasked[0], replay(model, ROWS[0])) > 1.5 * tolerance
    assert (logits_of(model, ROWS[0], told(model)) - logits_of(model, ROWS[0])).abs().max() > 4 * tolerance


def check_generation(model, tolerance=TOLERANCE):
    """Hold a generation from a left-padded batch to the law, with and without a cache."""
    tokens, state = generate(model)
    again, without_cache = generate(model, use_cache=False)
    assert torch.equal(tokens, again)
    assert error(state, without_cache) <= tolerance
    for row, prompt in enumerate(ROWS):
        alone, _ = generate(model, [prompt])
        assert torch.equal(tokens[row], alone[0])
        assert error(state[row], replay(model, torch.cat([prompt, alone[0, :-1]]))) <= tolerance


def outcome(model):
    """What a model makes of a text: logits, memory, the logits of a question read from it, generated tokens."""
    state, logits = model.new_memory(2), []
    with torch.no_grad(), model.memory(state):
        logits.append(model(input_ids=random_tokens(2, 12)).logits)
    with torch.no_grad(), model.memory(state, write=False):
        logits.append(model(input_ids=random_tokens(2, 6, seed=1)).logits)
    tokens, after = generate(model)
    return {
        **state.tensors,
        **{f"after {n}": t for n, t in after.tensors.items()},
        "logits": torch.cat(logits, 1),
        "ids": tokens,
    }


def check_same(first, second):
    """Make sure that two models make the same of a text, bit for bit, and take each other's memories.

    After decoded tokens, the memories may differ by rounding: weights that are elsewhere are not for the fused kernels.
    """
    one, other = outcome(first), outcome(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not name.startswith("after ") and not torch.equal(one[name], other[name])] == []
    decoded = [name for name in one if name.startswith("after ")]
    assert [name for name in decoded if (one[name] - other[name]).abs().max() > TOLERANCE] == []
    assert first.base_model.fingerprint() == second.base_model.fingerprint()


def logits_for(model):
    with torch.no_grad():
        return model(input_ids=random_tokens(2, 8)).logits


def gradients(model):
    """The adapter's, through a write and a read; nothing else may get any."""
    state = model.new_memory()
    with model.memory(state, detach=False):
        model(input_ids=random_tokens(1, 8))
    with model.memory(state, write=False):
        model(input_ids=random_tokens(1, 4, seed=5)).logits.float().pow(2).sum().backward()
    adapter = {name: p for name, p in model.named_parameters() if ".delta_mem_" in name}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == adapter.keys()
    assert all(p.dtype == torch.float32 for p in adapter.values())
    return torch.cat([p.grad.flatten() for p in adapter.values()])

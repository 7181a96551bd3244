"""A KV cache that meets several blocks, is cropped in vain, read without the adapter, copied or pickled."""

import copy
import gc
import pickle

import pytest
import torch
from oracle import GREEDY, TOLERANCE, adapted, error, logits_of, replay, rows_in, tokens_in, told
from tiny import random_tokens
from torch import nn
from transformers import DynamicCache

from deltamem.forward.kv_cache import MemoryCacheLayer

PROMPT, TURN = random_tokens(1, 6), random_tokens(1, 5, seed=3)


def read(model, ids, cache):
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=cache).logits[0]


def lengths(cache):
    return [layer.keys.shape[2] for layer in cache.layers if not isinstance(layer, MemoryCacheLayer)]


@pytest.mark.parametrize("filled_by", ["nobody", "another user"])
def test_a_crop_in_a_block_takes_back_what_the_block_wrote_and_no_more(filled_by):
    model, cache = adapted(), DynamicCache()
    mine = told(model)
    before = mine.clone()
    if filled_by == "nobody":
        read(model, PROMPT, cache)
    else:
        with model.memory(told(model, seed=7)):
            read(model, PROMPT, cache)
    with model.memory(mine):
        read(model, TURN, cache)
        with pytest.raises(RuntimeError, match="3 of them were in the cache before"):
            cache.crop(-8)
        assert lengths(cache) == [11, 11]  # no layer was cut
        cache.crop(-5)
        assert error(mine, before) <= TOLERANCE
        read(model, TURN, cache)
    assert error(mine, replay(model, TURN[0], before)) > 0  # the keys of the prompt were there
    assert mine.tokens == [before.tokens[0] + 5]


def test_without_that_check_the_other_users_memory_would_come(monkeypatch):
    monkeypatch.setattr(MemoryCacheLayer, "_open_scope", lambda self: self.scope and self.scope())
    monkeypatch.setattr(MemoryCacheLayer, "check_crop", lambda self, tokens: None)
    model, cache = adapted(), DynamicCache()
    mine, others = told(model), told(model, seed=7)
    with model.memory(others):
        read(model, PROMPT, cache)
    with model.memory(mine):
        read(model, TURN, cache)
        cache.crop(-8)
    assert error(mine, replay(model, PROMPT[0, :3], told(model, seed=7))) <= TOLERANCE


def test_a_crop_that_is_refused_changes_nothing():
    model, cache = adapted(), DynamicCache()
    state = model.new_memory()
    with model.memory(state):
        for start in range(3, 60, 3):
            read(model, random_tokens(1, 6, seed=start), cache)
        before, length, kept = state.clone(), lengths(cache), len(MemoryCacheLayer.find(cache).steps)
        with pytest.raises(RuntimeError, match="can undo only the last 64 written tokens"):
            cache.crop(-100)
        assert lengths(cache) == length
        assert len(MemoryCacheLayer.find(cache).steps) == kept
        assert error(state, before) == 0
        assert error(rows_in(cache)[0], before) == 0


def test_tokens_that_were_read_without_the_adapter_are_cropped_as_such():
    model, cache = adapted(), DynamicCache()
    state = model.new_memory()
    with model.memory(state):
        read(model, PROMPT, cache)
        with model.disable_adapter():
            read(model, TURN, cache)
        assert (state.tokens, tokens_in(cache)) == ([6], [6])
        cache.crop(-5)
        assert state.tokens == [6]
        read(model, TURN, cache)
        with model.disable_adapter():
            read(model, TURN, cache)
        cache.crop(-7)  # all of these, and two that were written
    expected, cache = model.new_memory(), DynamicCache()
    with model.memory(expected):
        read(model, PROMPT, cache)
        read(model, TURN[:, :3], cache)
    assert state.tokens == expected.tokens == [9]
    assert error(state, expected) <= TOLERANCE


def linear_maps():
    gc.collect()
    return sum(type(thing) is nn.Linear for thing in gc.get_objects())


def test_a_copy_of_a_cache_is_a_branch_and_copies_no_adapter():
    model, cache = adapted(), DynamicCache()
    for token in PROMPT[0]:
        read(model, token[None, None], cache)
    before = linear_maps()
    branch = copy.deepcopy(cache)
    assert linear_maps() == before
    read(model, TURN, branch)
    cache.crop(-1)
    branch.crop(-7)
    assert tokens_in(branch) == [4]
    assert tokens_in(cache) == [5]
    assert error(rows_in(branch)[0], replay(model, PROMPT[0, :4])) <= TOLERANCE
    assert error(rows_in(cache)[0], replay(model, PROMPT[0, :5])) <= TOLERANCE
    assert lengths(cache) == [5, 5]


@pytest.mark.parametrize("filled", ["at once", "token by token", "in a block"])
def test_a_pickled_cache_goes_on(filled):
    model, cache = adapted(), DynamicCache()
    if filled == "in a block":
        with model.memory(model.new_memory()):
            read(model, PROMPT, cache)
    else:
        for part in PROMPT.split(6 if filled == "at once" else 1, dim=1):
            read(model, part, cache)
    loaded = pickle.loads(pickle.dumps(cache))
    expected = logits_of(model, torch.cat([PROMPT, TURN], dim=1)[0])[-5:]
    assert (read(model, TURN, loaded) - expected).abs().max() <= TOLERANCE
    loaded.crop(-8)
    assert error(rows_in(loaded)[0], replay(model, PROMPT[0, :3])) <= TOLERANCE


def test_a_pickled_cache_of_another_adapter_is_refused():
    model, other, cache = adapted(), adapted(seed=5), DynamicCache()
    read(model, PROMPT, cache)
    loaded = pickle.loads(pickle.dumps(cache))
    with pytest.raises(ValueError, match="carries the memory of the adapter"):
        read(other, TURN, loaded)


def test_generation_goes_on_from_a_pickled_cache():
    model, cache = adapted(), DynamicCache()
    read(model, PROMPT, cache)
    whole = torch.cat([PROMPT, TURN], dim=1)
    answers = [
        model.generate(input_ids=whole, past_key_values=past, **GREEDY, **options)
        for past, options in (
            (None, {}),
            (pickle.loads(pickle.dumps(cache)), {}),
            (pickle.loads(pickle.dumps(cache)), {"prompt_lookup_num_tokens": 2}),
        )
    ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])

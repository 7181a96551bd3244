"""The memory rides in the KV cache: generated text and memory are those of a replay without cache."""

import copy

import pytest
import torch
from tiny import MODEL_TYPES, PAD, random_tokens, tiny_adapted
from transformers import DynamicCache, StaticCache

from deltamem.cache import WINDOW, MemoryCacheLayer

OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": PAD}


def generate(model, ids, **options):
    return model.generate(input_ids=ids, attention_mask=(ids != PAD).long(), **{**OPTIONS, **options})


def replay(model, tokens, start=None):
    """The memory after one pass over a row's tokens."""
    state = model.new_memory() if start is None else start.clone()
    with torch.no_grad(), model.memory(state):
        model(input_ids=tokens[None])
    return state.tensors


def close(first, second, tolerance=1e-5):
    return all(torch.allclose(first[name], second[name], atol=tolerance, rtol=0) for name in second)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_with_and_without_cache(model_type):
    model = tiny_adapted(model_type=model_type)
    ids = random_tokens(2, 10)
    output = generate(model, ids, return_dict_in_generate=True)
    assert torch.equal(output.sequences, generate(model, ids, use_cache=False))
    memory = MemoryCacheLayer.find(output.past_key_values).contents.states
    for row in (0, 1):  # the last token is generated, but not read any more
        assert close({n: t[row : row + 1] for n, t in memory.items()}, replay(model, output.sequences[row, :-1]))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_generation_in_a_block_writes_each_token_once(use_cache):
    model = tiny_adapted()
    state, ids = model.new_memory(), random_tokens(1, 10)
    with model.memory(state):
        sequence = generate(model, ids, use_cache=use_cache)[0]
    assert close(state.tensors, replay(model, sequence[:-1]))


def test_a_memory_changes_what_is_generated_and_reading_does_not_change_it():
    model = tiny_adapted()
    state, ids = model.new_memory(), random_tokens(1, 10)
    with torch.no_grad(), model.memory(state):
        model(input_ids=random_tokens(1, 40, seed=9))
    before = state.clone()
    with model.memory(state, write=False):
        told = generate(model, ids)
    assert close(state.tensors, before.tensors, tolerance=0)
    assert not torch.equal(told, generate(model, ids))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_left_padding(attn, cache):
    model = tiny_adapted(attn=attn)
    short, long = random_tokens(1, 5, seed=1), random_tokens(1, 9, seed=2)
    ids = torch.cat([torch.nn.functional.pad(short, (4, 0), value=PAD), long])
    state = model.new_memory(2)
    with model.memory(state):
        sequences = generate(model, ids, cache_implementation=cache, disable_compile=True)
    for row, prompt in ((0, short), (1, long)):
        alone = generate(model, prompt)[0]
        assert torch.equal(sequences[row, -8:], alone[-8:])
        assert close(state[row].tensors, replay(model, alone[:-1]))


def test_beams_reorder_the_memory(monkeypatch):
    model = tiny_adapted()
    ids = random_tokens(1, 10)
    beams = {"num_beams": 4, "num_return_sequences": 4}
    oracle = generate(model, ids, use_cache=False, **beams)
    assert torch.equal(generate(model, ids, **beams), oracle)
    monkeypatch.setattr(MemoryCacheLayer, "reorder_cache", lambda self, rows: None)  # the control
    output = generate(model, ids, return_dict_in_generate=True, output_scores=True, **beams)
    monkeypatch.undo()
    scores = generate(model, ids, return_dict_in_generate=True, output_scores=True, **beams).sequences_scores
    assert not torch.allclose(output.sequences_scores, scores, atol=1e-5)


def test_branches_start_from_the_rows_memory_and_leave_the_prompts():
    model = tiny_adapted()
    state, prompt = model.new_memory(2), random_tokens(2, 6)
    with torch.no_grad(), model.memory(state):
        model(input_ids=random_tokens(2, 20, seed=4))
    start = state.clone()
    with model.memory(state):
        sequences = generate(model, prompt, num_beams=3, num_return_sequences=3)
    assert sequences.shape[0] == 6
    for row in (0, 1):
        alone = start[row]
        with model.memory(alone):
            best = generate(model, prompt[row : row + 1], num_beams=3)
        assert torch.equal(sequences[3 * row], best[0])
        assert close(state[row].tensors, replay(model, prompt[row], start[row]))


def test_prompt_lookup_takes_back_what_it_rejects(monkeypatch):
    model = tiny_adapted()
    ids = random_tokens(1, 6).repeat(1, 3)
    greedy = generate(model, ids, max_new_tokens=16, min_new_tokens=16)
    lookup = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 16, "min_new_tokens": 16, "return_dict_in_generate": True}
    output = generate(model, ids, **lookup)
    assert torch.equal(output.sequences, greedy)
    memory = MemoryCacheLayer.find(output.past_key_values).contents.states
    assert close(memory, replay(model, greedy[0, :-1]))
    monkeypatch.setattr(MemoryCacheLayer, "crop", lambda self, tokens: None)  # the control
    memory = MemoryCacheLayer.find(generate(model, ids, **lookup).past_key_values).contents.states
    assert not close(memory, replay(model, greedy[0, :-1]))


@pytest.fixture
def filled():
    """A cache filled in passes of 20, 1 and 5 tokens, with the tokens."""
    model, ids, cache = tiny_adapted(), random_tokens(2, 26), DynamicCache()
    with torch.no_grad():
        for piece in ids.split([20, 1, 5], dim=1):
            model(input_ids=piece, past_key_values=cache, use_cache=True)
    return model, ids, cache


def memories(cache):
    states = MemoryCacheLayer.find(cache).contents.states
    rows = len(next(iter(states.values())))
    return [{name: tensor[row : row + 1] for name, tensor in states.items()} for row in range(rows)]


@pytest.mark.parametrize("removed", [0, 1, 5, 6, 13])
def test_cropping_a_cache_crops_the_memory(filled, removed):
    model, ids, cache = filled
    cache.crop(-removed)
    for row in (0, 1):
        assert close(memories(cache)[row], replay(model, ids[row, : 26 - removed]))


def test_crop_after_crop_and_after_reordering(filled):
    model, ids, cache = filled
    cache.crop(-3)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-5)
    assert close(memories(cache)[0], replay(model, ids[1, :18]))


def test_cropping_more_than_the_window_is_an_error():
    model, cache = tiny_adapted(), DynamicCache()
    with torch.no_grad():
        for seed in range(2 * WINDOW):
            model(input_ids=random_tokens(1, 1, seed=seed), past_key_values=cache, use_cache=True)
    before = memories(cache)[0]
    with pytest.raises(RuntimeError, match=f"last {WINDOW} written"):
        MemoryCacheLayer.find(cache).crop(-WINDOW - 20)
    assert close(memories(cache)[0], before, tolerance=0)


def test_the_other_operations_of_a_cache(filled):
    model, ids, cache = filled
    expected = [replay(model, ids[row]) for row in (0, 1)]
    twin = copy.deepcopy(cache)
    cache.batch_repeat_interleave(2)
    assert all(close(memory, expected[row]) for memory, row in zip(memories(cache), (0, 0, 1, 1), strict=True))
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert all(close(memory, expected[row]) for memory, row in zip(memories(cache), (1, 0), strict=True))
    cache.reset()
    assert MemoryCacheLayer.find(cache).contents is None
    assert all(close(memory, expected[row]) for row, memory in enumerate(memories(twin)))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_users_own_cache_over_two_calls(kind):
    model = tiny_adapted()
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=64)
    ids = random_tokens(1, 10)
    first = generate(model, ids, past_key_values=cache)
    more = torch.cat([first, random_tokens(1, 4, seed=8)], dim=1)
    assert torch.equal(generate(model, more, past_key_values=cache), generate(model, more))


def test_the_cache_of_another_adapter_is_refused(filled):
    _, ids, cache = filled
    other = tiny_adapted(seed=5)
    with pytest.raises(ValueError, match="use a fresh cache"):
        other(input_ids=ids[:, :1], past_key_values=cache)

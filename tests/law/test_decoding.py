"""Generated text and memory are those of a replay, whatever the strategy, the cache and the padding."""

import itertools
from unittest import mock

import pytest
import torch
from nightly import by_day
from oracle import (
    GREEDY,
    TOLERANCE,
    adapted,
    error,
    left_padded,
    replay,
    rows_in,
    tokens_in,
    told,
)
from tiny import FAMILIES, random_tokens, tiny_backbone
from transformers import DynamicCache, LogitsProcessorList, StaticCache

from deltamem.forward.kv_cache import WINDOW, MemoryCacheLayer

FULL_ATTENTION = ("llama", "qwen3", "phi3", "gpt_neox")
NOT_RECURRENT = tuple(family for family in FAMILIES if family != "falcon_h1")

# How transformers can be asked to run one and the same greedy search.
RUNS = {
    "dynamic cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "chunked prefill": {"prefill_chunk_size": 4},
}


def generate(model, ids, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(input_ids=ids, attention_mask=mask, **{**GREEDY, **options})


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_greedy_search(model_type, run):
    model, ids = adapted(model_type), random_tokens(2, 10)
    start = told(model, rows=2)
    state = start.clone()
    with model.memory(state):
        sequences = generate(model, ids, **RUNS[run])
    assert sequences.shape == (2, 18)
    assert state.tokens == [12 + 17] * 2  # the last token was generated, but is read by nothing yet
    for row in (0, 1):
        assert error(state[row], replay(model, sequences[row, :-1], start[row])) < TOLERANCE
        one_by_one = ids[row]
        for _ in range(8):
            with torch.no_grad(), model.memory(start[row]):
                logits = model(input_ids=one_by_one[None], use_cache=False).logits[0, -1]
            logits[2] = -torch.inf  # no end before min_new_tokens
            one_by_one = torch.cat([one_by_one, logits.argmax(keepdim=True)])
        assert torch.equal(sequences[row], one_by_one)


# By day, each way of a run and each attention with Llama, and the others in turn: what a mask leaves out is one code of ours.
PADDED = [*itertools.product(FAMILIES, ("dynamic cache", "static cache", "no cache"), ("eager", "sdpa"))]


@pytest.mark.parametrize(
    ("model_type", "run", "attn"), by_day([case for case in PADDED if case[0] == "llama"] + PADDED[6::5], PADDED)
)
def test_left_padding(model_type, run, attn):
    model = adapted(model_type, attn)
    prompts = [random_tokens(1, length, seed=length)[0] for length in (5, 9, 7)]
    start = told(model, rows=3)
    state = start.clone()
    with model.memory(state):
        sequences = generate(model, *left_padded(*prompts).values(), **RUNS[run])
    for row, prompt in enumerate(prompts):
        alone = start[row]
        with model.memory(alone):
            expected = generate(model, prompt[None])[0]
        assert torch.equal(sequences[row, -8:], expected[-8:])
        assert error(state[row], alone) < TOLERANCE
        assert state.tokens[row] == alone.tokens[0] == 12 + len(expected) - 1


@pytest.mark.parametrize("model_type", NOT_RECURRENT)  # transformers' Falcon H1 generates from tokens only
def test_embeddings_instead_of_tokens(model_type):
    model, ids = adapted(model_type), random_tokens(1, 10)
    state = model.new_memory()
    with model.memory(state):
        new = model.generate(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=torch.ones_like(ids), **GREEDY)
    expected = generate(model, ids)[0]
    assert torch.equal(new[0], expected[-8:])
    assert error(state, replay(model, expected[:-1])) < TOLERANCE


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sampling_with_a_seed_in_several_branches(model_type):
    model, ids = adapted(model_type), random_tokens(2, 10)
    start, drawn = told(model, rows=2), {}
    for use_cache in (True, False):
        state = start.clone()
        torch.manual_seed(7)
        with model.memory(state):
            drawn[use_cache] = generate(model, ids, do_sample=True, num_return_sequences=3, use_cache=use_cache)
        for row in (0, 1):  # a block keeps what all beams_per_row have in common: the memory after the prompt
            assert error(state[row], replay(model, ids[row], start[row])) < TOLERANCE
        assert state.tokens == [22, 22]
    assert torch.equal(drawn[True], drawn[False])
    assert len({tuple(sequence.tolist()) for sequence in drawn[True]}) > 2


def test_a_memory_changes_what_is_generated_and_reading_does_not_change_it():
    model, ids = adapted(), random_tokens(1, 10)
    state = told(model)
    before = state.snapshot
    with model.memory(state, write=False):
        read = generate(model, ids)
    assert state.snapshot is before
    assert not torch.equal(read, generate(model, ids))


def watch_beams(model, start, cache, errors):
    """A logits processor that compares every beam's memory with a replay of its tokens."""

    def compare(input_ids, scores):
        beams = input_ids.shape[0] // len(start)
        for index, memory in enumerate(rows_in(cache)):
            errors.append(error(memory, replay(model, input_ids[index], start[index // beams])))
        return scores

    return LogitsProcessorList([compare])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_beam_search(model_type, monkeypatch):
    model, ids = adapted(model_type), random_tokens(2, 10)
    start, beams = told(model, rows=2), {"num_beams": 3, "num_return_sequences": 3}

    def search(**options):
        state = start.clone()
        with model.memory(state):
            return generate(model, ids, **beams, **options), state

    oracle, _ = search(use_cache=False)
    errors, cache = [], DynamicCache(config=model.config)
    sequences, state = search(past_key_values=cache, logits_processor=watch_beams(model, start, cache, errors))
    assert torch.equal(sequences, oracle)
    assert len(errors) == 8 * 6
    assert max(errors) < TOLERANCE
    for row in (0, 1):
        assert error(state[row], replay(model, ids[row], start[row])) < TOLERANCE

    monkeypatch.setattr(MemoryCacheLayer, "reorder_cache", lambda self, rows: None)  # the control
    errors, cache = [], DynamicCache(config=model.config)
    search(past_key_values=cache, logits_processor=watch_beams(model, start, cache, errors))
    assert max(errors) > 0.01


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_users_own_cache_over_several_calls(model_type, kind):
    model, state = adapted(model_type), None
    cache = DynamicCache(config=model.config) if kind is DynamicCache else StaticCache(model.config, max_cache_len=64)
    state, text = model.new_memory(), random_tokens(1, 8)
    with model.memory(state):
        for turn in range(3):
            text = generate(model, text, past_key_values=cache, max_new_tokens=5, min_new_tokens=5, disable_compile=True)
            assert error(state, replay(model, text[0, :-1])) < TOLERANCE
            assert error(rows_in(cache)[0], state) == 0
            assert tokens_in(cache) == state.tokens == [text.shape[1] - 1]
            text = torch.cat([text, random_tokens(1, 4, seed=turn)], dim=1)
    with model.memory(model.new_memory(), write=False):  # another block, so another start: the cache's memory is not taken
        generate(model, text, past_key_values=cache)


# --------------------------------------------------------------------------------------------------- assisted decoding

ASSISTED = {
    "prompt lookup": lambda model_type: {"prompt_lookup_num_tokens": 3},
    "another model": lambda model_type: {"assistant_model": tiny_backbone(model_type, attn="eager", seed=0)},
    "another adapted model": lambda model_type: {"assistant_model": adapted(model_type, seed=3)},
}


@pytest.mark.parametrize("kind", ASSISTED)
@pytest.mark.parametrize("model_type", NOT_RECURRENT)
def test_drafts_that_are_rejected_are_taken_back(model_type, kind, monkeypatch):
    model, ids = adapted(model_type), random_tokens(1, 6).repeat(1, 3)
    start, long = told(model), {"max_new_tokens": 16, "min_new_tokens": 16}
    draft, crops = ASSISTED[kind](model_type), []
    crop = MemoryCacheLayer.crop
    monkeypatch.setattr(MemoryCacheLayer, "crop", lambda self, tokens: (crops.append(tokens), crop(self, tokens))[1])

    def search(**options):
        state = start.clone()
        with model.memory(state):
            return generate(model, ids, **long, **options)[0], state

    greedy, expected = search()
    sequence, state = search(**draft)
    assert torch.equal(sequence, greedy)
    assert error(state, expected) < TOLERANCE
    assert error(state, replay(model, greedy[:-1], start)) < TOLERANCE
    assert state.tokens == expected.tokens == [12 + len(greedy) - 1]
    assert any(crops)  # something was drafted and rejected
    monkeypatch.setattr(MemoryCacheLayer, "crop", lambda self, tokens: None)  # the control
    assert error(search(**draft)[1], expected) > 1e-3


def test_taking_back_more_than_the_window_is_an_error():
    model, cache = adapted(), DynamicCache()
    with torch.no_grad():
        for seed in range(2 * WINDOW):
            model(input_ids=random_tokens(1, 1, seed=seed), past_key_values=cache, use_cache=True)
    before = rows_in(cache)[0]
    with pytest.raises(RuntimeError, match=f"last {WINDOW} written"):
        MemoryCacheLayer.find(cache).crop(-WINDOW - 20)
    assert error(rows_in(cache)[0], before) == 0
    assert len(MemoryCacheLayer.find(cache).steps) <= WINDOW + 1  # nothing grows with the text


def test_transformers_itself_does_not_draft_with_recurrent_models():
    with pytest.raises(ValueError, match="stateful"):
        generate(adapted("falcon_h1"), random_tokens(1, 8), prompt_lookup_num_tokens=3)


# ------------------------------------------------------------------------------------------------------- other caches


@pytest.mark.parametrize("model_type", FULL_ATTENTION)
def test_a_quantised_cache(model_type):
    """Keys and values in 8 bits change the hidden states a little, and the memory with them; nothing is lost or doubled."""
    model, ids = adapted(model_type), random_tokens(2, 10)
    start = told(model, rows=2)
    state = start.clone()
    quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    with model.memory(state):
        sequences = generate(model, ids, **quantised)
    assert state.tokens == [12 + 17] * 2
    for row in (0, 1):
        exact = replay(model, sequences[row, :-1], start[row])
        assert error(state[row], exact) < 1e-3
        assert error(replay(model, sequences[row, :-2], start[row]), exact) > 1e-2  # the control: one token less


@pytest.mark.parametrize("model_type", NOT_RECURRENT)
def test_an_offloaded_cache(model_type, monkeypatch):
    """The calls that offloading makes, without the streams that only a GPU has."""
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: mock.Mock())
    model, ids = adapted(model_type), random_tokens(1, 10)
    cache = DynamicCache(config=model.config)
    cache.offloading, cache.only_non_sliding, cache.prefetch_stream = True, False, mock.MagicMock()
    state = model.new_memory()
    with model.memory(state):
        sequence = generate(model, ids, past_key_values=cache)[0]
    assert torch.equal(sequence, generate(model, ids)[0])
    assert error(state, replay(model, sequence[:-1])) < TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs a GPU")
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_an_offloaded_cache_on_a_gpu(kind):
    model, ids = adapted().cuda(), random_tokens(1, 10).cuda()
    state = model.new_memory()
    with model.memory(state):
        sequence = generate(model, ids, cache_implementation=kind)[0]
    assert error(state, replay(model, sequence[:-1])) < TOLERANCE


# ----------------------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "DoLa": {"dola_layers": "high"},
    "a strategy from a repository": {"custom_generate": "somebody/strategy", "trust_remote_code": True},
}


@pytest.mark.parametrize("strategy", REFUSED)
def test_strategies_that_the_memory_cannot_follow_are_refused(strategy):
    model = adapted()
    state = told(model)
    before = state.snapshot
    with pytest.raises(NotImplementedError, match=r"δ-mem does not generate with .*greedy_search"), model.memory(state):
        generate(model, random_tokens(1, 8), **REFUSED[strategy])
    assert state.snapshot is before

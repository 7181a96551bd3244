"""What is done to a KV cache is done to the memory in it."""

import copy
import itertools

import pytest
import torch
from oracle import TOLERANCE, adapted, error, replay, rows_in, tokens_in, told
from tiny import FAMILIES, random_tokens, tiny_config
from transformers import DynamicCache

from deltamem.forward.kv_cache import MemoryCacheLayer

# A recurrent mixer's state cannot be taken back, and transformers does not repeat or select its rows.
NOT_RECURRENT = tuple(family for family in FAMILIES if family != "falcon_h1")
PIECES = (20, 1, 5)


def fill(model, ids, **options):
    """A cache filled in passes of 20, 1 and 5 tokens."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for piece in ids.split(PIECES, dim=1):
            model(input_ids=piece, past_key_values=cache, use_cache=True, **options)
    return cache


@pytest.fixture(params=FAMILIES)
def filled(request):
    model, ids = adapted(request.param), random_tokens(2, sum(PIECES))
    return model, ids, fill(model, ids)


@pytest.fixture(params=NOT_RECURRENT)
def croppable(request):
    model, ids = adapted(request.param), random_tokens(2, sum(PIECES))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for index, piece in enumerate(ids.split(PIECES, dim=1)):
            if index == 1:  # as assisted decoding does: sliding windows then keep what a crop needs
                cache.activate_past_recording()
            model(input_ids=piece, past_key_values=cache, use_cache=True)
    return model, ids, cache


def holds(cache, model, texts):
    """Whether the rows of the cache hold the memories of these texts."""
    assert tokens_in(cache) == [len(text) for text in texts]
    return all(error(row, replay(model, text)) < TOLERANCE for row, text in zip(rows_in(cache), texts, strict=True))


def test_chunks_are_one_pass(filled):
    model, ids, cache = filled
    assert holds(cache, model, ids)


def test_reorder(filled):
    model, ids, cache = filled
    cache.reorder_cache(torch.tensor([1, 1]))
    assert holds(cache, model, [ids[1], ids[1]])
    assert not holds(cache, model, [ids[0], ids[1]])  # the control


@pytest.mark.parametrize("removed", [0, 1, 5, 6, 13])
def test_crop(croppable, removed):
    model, ids, cache = croppable
    MemoryCacheLayer.find(cache).crop(-removed)
    assert holds(cache, model, ids[:, : 26 - removed])


def test_crop_of_the_whole_cache_and_going_on(croppable):
    model, ids, cache = croppable
    cache.crop(-3)
    with torch.no_grad():
        logits = model(input_ids=ids[:, 23:], past_key_values=cache, use_cache=True).logits
        expected = model(input_ids=ids, use_cache=False).logits[:, 23:]
    assert torch.allclose(logits, expected, atol=TOLERANCE)
    assert holds(cache, model, ids)


def test_crop_after_crop_and_after_reordering(croppable):
    model, ids, cache = croppable
    memory = MemoryCacheLayer.find(cache)
    memory.crop(-3)
    memory.reorder_cache(torch.tensor([1, 0]))
    memory.crop(-5)
    assert holds(cache, model, [ids[1, :18], ids[0, :18]])


def test_crop_in_a_block_takes_it_back_from_the_block():
    model, ids = adapted(), random_tokens(1, 12)
    start = told(model)
    state, cache = start.clone(), DynamicCache()
    with torch.no_grad(), model.memory(state):
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.crop(-5)
        assert error(state, replay(model, ids[0, :7], start)) < TOLERANCE
        model(input_ids=ids[:, :2], past_key_values=cache, use_cache=True)
    kept = torch.cat([ids[0, :7], ids[0, :2]])
    assert error(state, replay(model, kept, start)) < TOLERANCE
    assert state.tokens == [12 + 9]
    after = state.snapshot
    cache.crop(-4)  # the block is closed: its memory is a value
    assert state.snapshot is after


def test_crop_counts_the_valid_tokens_only():
    model, ids = adapted(), random_tokens(2, 10)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    cache.crop(-5)
    assert tokens_in(cache) == [0, 5]
    assert error(rows_in(cache)[1], replay(model, ids[1, :5])) < TOLERANCE
    assert not any(state.any() for state in rows_in(cache)[0].values())


@pytest.mark.parametrize("removed", [1, 4])
def test_part_of_a_pass_that_wrote_segments_cannot_be_taken_back(removed):
    model = adapted(config=tiny_config(write="message"))
    state, cache, ids = model.new_memory(), DynamicCache(), random_tokens(1, 6)
    with torch.no_grad(), model.memory(state, segment_ids=torch.tensor([[0, 0, 0, 1, 1, 1]])):
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        written = state.snapshot
        with pytest.raises(RuntimeError, match="a pass that wrote segments"):
            MemoryCacheLayer.find(cache).crop(-removed)
        assert state.snapshot is written
        MemoryCacheLayer.find(cache).crop(-6)
    assert error(state, model.new_memory()) == 0


@pytest.mark.parametrize("model_type", NOT_RECURRENT)
def test_repeat_and_select(model_type):
    model, ids = adapted(model_type), random_tokens(2, sum(PIECES))
    cache = fill(model, ids)
    cache.batch_repeat_interleave(2)
    assert holds(cache, model, ids[[0, 0, 1, 1]])
    cache.batch_select_indices(torch.tensor([3, 0, 0]))
    assert holds(cache, model, ids[[1, 0, 0]])
    cache.batch_select_indices(torch.tensor([False, True, False]))
    assert holds(cache, model, ids[[0]])
    MemoryCacheLayer.find(cache).crop(-6)
    assert holds(cache, model, ids[[0], :20])


def test_copy_and_reset(filled):
    model, ids, cache = filled
    twin = copy.deepcopy(cache)
    cache.reset()
    assert MemoryCacheLayer.find(cache).snapshot is None
    assert holds(twin, model, ids)
    with torch.no_grad():
        again = model(input_ids=ids[:, :6], past_key_values=cache, use_cache=True).logits
        assert torch.allclose(again, model(input_ids=ids[:, :6], use_cache=False).logits, atol=TOLERANCE)
    assert holds(cache, model, ids[:, :6])
    assert holds(twin, model, ids)


def test_resetting_the_cache_in_a_block_keeps_the_blocks_memory():
    """A new context, the same memory."""
    model, ids = adapted(), random_tokens(1, 12)
    state, cache = model.new_memory(), DynamicCache()
    with torch.no_grad(), model.memory(state):
        for piece in ids.split(6, dim=1):
            model(input_ids=piece, past_key_values=cache, use_cache=True)
            cache.reset()
    expected = replay(model, ids[0, 6:], replay(model, ids[0, :6]))
    assert error(state, expected) < TOLERANCE


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_right_padded_prefill(model_type, attn):
    """The memory of a row ignores its padding, which transformers' own recurrent states do not."""
    model, lengths = adapted(model_type, attn), (4, 9)
    ids, mask, start = random_tokens(2, 9), torch.zeros(2, 9, dtype=torch.long), told(model, rows=2)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    state, cache = start.clone(), DynamicCache(config=model.config)
    with torch.no_grad(), model.memory(state):
        model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    for row, length in enumerate(lengths):
        expected = replay(model, ids[row, :length], start[row])
        assert error(state[row], expected) < TOLERANCE
        assert error(rows_in(cache)[row], expected) < TOLERANCE
    assert state.tokens == [16, 21]
    assert error(state[0], replay(model, ids[0], start[0])) > 1e-3  # the control


@pytest.mark.parametrize("model_type", FAMILIES)
def test_where_a_text_is_cut_does_not_matter(model_type):
    model, ids = adapted(model_type), random_tokens(1, 12)
    start = told(model)
    with torch.no_grad(), model.memory(start.clone()):
        whole = model(input_ids=ids, use_cache=False).logits
    expected = replay(model, ids[0], start)
    for cuts in itertools.chain([(c,) for c in range(1, 12, 3)], [tuple(range(1, 12)), (5, 6), (1, 11)]):
        state, cache = start.clone(), DynamicCache(config=model.config)
        with torch.no_grad(), model.memory(state):
            logits = [
                model(input_ids=piece, past_key_values=cache, use_cache=True).logits for piece in ids.tensor_split(cuts, dim=1)
            ]
        assert torch.allclose(torch.cat(logits, dim=1), whole, atol=TOLERANCE)
        assert error(state, expected) < TOLERANCE


def test_the_cache_of_another_adapter_is_refused():
    model, ids = adapted(), random_tokens(2, sum(PIECES))
    cache = fill(model, ids)
    with pytest.raises(ValueError, match="use a fresh cache"):
        adapted(seed=5)(input_ids=ids[:, :1], past_key_values=cache)

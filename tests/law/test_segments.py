"""Adapters that write segments (SSW): a message is one write, however it is cut into passes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import TOLERANCE, adapted, error
from tiny import FAMILIES, random_tokens, tiny_config
from transformers import DynamicCache

from deltamem import DeltaMemState

LENGTH = 14


def ssw(model_type="llama", **options):
    return adapted(model_type, config=tiny_config(write="message", **options))


def write(model, state, ids, segment_ids, cuts=(), keep_open=None):
    """One pass over `[batch, tokens]`, or several with a KV cache; by default all but the last leave their segment open."""
    cache = DynamicCache(config=model.config)
    pieces = list(zip(ids.tensor_split(cuts, dim=1), segment_ids.tensor_split(cuts, dim=1), strict=True))
    for index, (piece, segments) in enumerate(pieces):
        open_ = index < len(pieces) - 1 if keep_open is None else keep_open[index]
        with torch.no_grad(), model.memory(state, segment_ids=segments, keep_open=open_):
            model(input_ids=piece, past_key_values=cache, use_cache=True)
    return state


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_segment_cut_into_passes_is_written_once(model_type):
    model, ids = ssw(model_type), random_tokens(2, LENGTH)
    segment_ids = torch.full_like(ids, 3)
    expected = write(model, model.new_memory(2), ids, segment_ids)
    for cuts in [(5,), (1, 2, 3), (13,), tuple(range(1, LENGTH))]:
        state = write(model, model.new_memory(2), ids, segment_ids, cuts)
        assert error(state, expected) < TOLERANCE
        assert state.snapshot.open_segment is None
        assert state.tokens == expected.tokens == [LENGTH] * 2
    each_closed = write(model, model.new_memory(2), ids, segment_ids, (5,), keep_open=(False, False))
    assert error(each_closed, expected) > 1e-3  # the control: two writes are not one


MODEL = ssw()
rows = st.lists(st.integers(0, 1), min_size=LENGTH, max_size=LENGTH)


@given(not_written=st.tuples(rows, rows), cuts=st.sets(st.integers(1, LENGTH - 1), max_size=4).map(sorted))
def test_rows_with_gaps_cut_anywhere(not_written, cuts):
    """Tokens that are not written, in different places in each row, also whole passes of them."""
    ids = random_tokens(2, LENGTH)
    segment_ids = torch.where(torch.tensor(not_written) == 1, -1, 7)
    expected = write(MODEL, MODEL.new_memory(2), ids, segment_ids)
    state = write(MODEL, MODEL.new_memory(2), ids, segment_ids, tuple(cuts))
    assert error(state, expected) < TOLERANCE
    assert state.tokens == (segment_ids >= 0).sum(1).tolist()


@pytest.mark.delta_rule
def test_another_id_completes_the_open_segment():
    model, ids = ssw(), random_tokens(2, 9)
    first, second = torch.tensor([[0, 0, 0, 1]] * 2), torch.tensor([[1, 1, 2, 2, 2], [5, 5, 5, 6, 6]])
    state = write(model, model.new_memory(2), ids[:, :4], first, keep_open=(True,))
    assert state.snapshot.open_segment.ids.tolist() == [1, 1]
    assert state.snapshot.open_segment.sizes.tolist() == [1, 1]
    written_first = state.tensors  # segment 0 alone
    expected = write(model, model.new_memory(2), ids[:, :3], torch.zeros(2, 3, dtype=torch.long))
    assert error(written_first, expected) < TOLERANCE
    closed = write(model, model.new_memory(2), ids[:, :4], first)
    for state_ in (state, closed):
        write(model, state_, ids[:, 4:], second)
    assert state.snapshot.open_segment is None
    assert state.tokens == closed.tokens == [9, 9]
    # The first layer's hidden states do not depend on what was read before, so there the writes can be compared: in row 1 the
    # same ones in the same order, while row 0 goes on with segment 1 and writes it once.
    layer = next(iter(state.tensors))
    differences = (state.tensors[layer] - closed.tensors[layer]).abs().amax(dim=(1, 2, 3))
    assert differences[1] < TOLERANCE
    assert differences[0] > 1e-3


def test_an_open_segment_is_part_of_the_memory(tmp_path):
    model, ids = ssw(), random_tokens(2, LENGTH)
    segment_ids = torch.zeros_like(ids)
    expected = write(model, model.new_memory(2), ids, segment_ids)

    def halves(between):
        cache = DynamicCache(config=model.config)
        state = model.new_memory(2)
        with torch.no_grad(), model.memory(state, segment_ids=segment_ids[:, :5], keep_open=True):
            model(input_ids=ids[:, :5], past_key_values=cache, use_cache=True)
        assert error(state, model.new_memory(2)) == 0
        state = between(state)
        with torch.no_grad(), model.memory(state, segment_ids=segment_ids[:, 5:]):
            model(input_ids=ids[:, 5:], past_key_values=cache, use_cache=True)
        return state

    def saved(state):
        state.save(tmp_path / "memory.safetensors")
        return DeltaMemState.load(tmp_path / "memory.safetensors")

    for between in (saved, DeltaMemState.clone, lambda s: DeltaMemState.stack([s[0], s[1]]), lambda s: s.to("cpu")):
        assert error(halves(between), expected) < TOLERANCE

    def forgotten(state):
        state.reset()
        return state

    assert error(halves(forgotten), expected) > 1e-3  # the control


def test_stacking_a_memory_with_an_open_segment_on_one_without():
    model, ids = ssw(), random_tokens(1, 8)
    segment_ids = torch.zeros_like(ids)
    begun = write(model, model.new_memory(), ids[:, :3], segment_ids[:, :3], keep_open=(True,))
    both = DeltaMemState.stack([model.new_memory(), begun])
    assert both.snapshot.open_segment.ids.tolist() == [-1, 0]
    with torch.no_grad(), model.memory(both, segment_ids=segment_ids.repeat(2, 1)[:, 3:]):
        model(input_ids=ids.repeat(2, 1)[:, 3:])
    with torch.no_grad(), model.memory(begun, segment_ids=segment_ids[:, 3:]):
        model(input_ids=ids[:, 3:])
    assert error(both[1], begun) < TOLERANCE
    assert both.tokens == [5, 8]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_segments_of_a_row_do_not_depend_on_the_others(model_type):
    model, ids = ssw(model_type), random_tokens(2, 6)
    segment_ids = torch.tensor([[0, 0, 1, 1, 1, 2], [-1, -1, -1, 1, 1, -1]])
    together = write(model, model.new_memory(2), ids, segment_ids)
    for row in (0, 1):
        alone = write(model, model.new_memory(), ids[row : row + 1], segment_ids[row : row + 1])
        assert error(together[row], alone) < TOLERANCE
        assert together.tokens[row] == alone.tokens[0]


def test_large_ids_cost_nothing():
    model, ids = ssw(), random_tokens(1, 8)
    dense = torch.tensor([[-1, 0, 0, 1, 1, 1, 2, 2]])
    expected = write(model, model.new_memory(), ids, dense)
    for scale in (1, 2_000_000, 2**61):
        large = torch.where(dense >= 0, dense * scale, -1)
        assert error(write(model, model.new_memory(), ids, large), expected) == 0


@pytest.mark.parametrize("reads", ["token", "message"])
def test_all_tokens_of_a_pass_read_the_memory_before_it(reads):
    """What a pass writes changes its own logits for an adapter that writes tokens, and not for one that writes messages."""
    model, ids = adapted(config=tiny_config(write=reads)), random_tokens(1, 8)
    options = {} if reads == "token" else {"segment_ids": torch.zeros_like(ids)}
    with torch.no_grad():
        with model.memory(model.new_memory(), **options):
            writing = model(input_ids=ids, use_cache=False).logits
        with model.memory(model.new_memory(), write=False):
            reading = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(writing, reading, atol=TOLERANCE) == (reads == "message")


def test_half_precision_sums_are_float32():
    """The mean of a long segment, summed in bfloat16, would be wrong by percents."""
    model = adapted(config=tiny_config(write="message"), dtype=torch.bfloat16)
    ids = random_tokens(1, 200)
    segment_ids, cuts = torch.zeros_like(ids), tuple(range(10, 200, 10))
    whole = write(model, model.new_memory(), ids, segment_ids)
    pieces = write(model, model.new_memory(), ids, segment_ids, cuts)
    scale = max(state.abs().max().item() for state in whole.tensors.values())
    assert error(whole, pieces) < 0.02 * scale  # the hidden states themselves differ by the rounding of attention


def test_token_writers_have_no_segments():
    model = adapted()
    for options in ({"keep_open": True}, {"segment_ids": torch.zeros(1, 5, dtype=torch.long)}):
        with pytest.raises(ValueError, match="for adapters that write segments; this one has write='token'"):
            model.memory(model.new_memory(), **options)


@pytest.mark.delta_rule
def test_order_of_the_ids_is_the_order_of_writes():
    model, ids = ssw(), random_tokens(1, 6)
    orders = [
        write(model, model.new_memory(), ids, torch.tensor([order])) for order in ([0, 0, 1, 1, 2, 2], [2, 2, 1, 1, 0, 0])
    ]
    assert error(*orders) > 1e-4
    assert all(a.tokens == b.tokens for a, b in itertools.pairwise(orders))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32], ids=str)
def test_whole_numbers_of_any_width_are_taken(dtype):
    ids, segment_ids = random_tokens(2, LENGTH), torch.arange(LENGTH).div(3, rounding_mode="floor").repeat(2, 1)
    expected = write(MODEL, MODEL.new_memory(2), ids, segment_ids, (5, 9))
    state = write(MODEL, MODEL.new_memory(2), ids, segment_ids.to(dtype), (5, 9))
    assert error(state, expected) == 0
    assert state.tokens == expected.tokens == [LENGTH] * 2
    if dtype.is_signed:
        not_written = write(MODEL, MODEL.new_memory(2), ids, torch.full_like(ids, -1).to(dtype))
        assert not_written.tokens == [0] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64], ids=str)
def test_what_is_no_whole_number_is_refused(dtype):
    state = MODEL.new_memory(2)
    with pytest.raises(ValueError, match="must be whole numbers"):
        write(MODEL, state, random_tokens(2, LENGTH), torch.zeros(2, LENGTH).to(dtype))
    assert state.tokens == [0] * 2

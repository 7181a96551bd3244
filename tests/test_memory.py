"""The `with model.memory(state)` block: what is read, what is written, and what is refused before anything is changed."""

import threading

import pytest
import torch
from tiny import random_tokens, tiny_adapted, tiny_backbone, tiny_config

from deltamem import DeltaMemState
from deltamem.contents import Contents
from deltamem.layer import DeltaMemLayer
from deltamem.passes import MemoryPass


def write(model, state, ids, **options):
    with torch.no_grad(), model.memory(state, **options):
        return model(input_ids=ids).logits


def same(first, second, tolerance=1e-6):
    return all(torch.allclose(first.tensors[n], second.tensors[n], atol=tolerance, rtol=0) for n in first.tensors)


@pytest.fixture(scope="module")
def model():
    return tiny_adapted()


def test_a_plain_call_starts_empty_and_leaves_nothing(model):
    ids = random_tokens(2, 10)
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)
    held = [v for layer in model.modules() if isinstance(layer, DeltaMemLayer) for v in vars(layer).values()]
    assert not any(isinstance(value, torch.Tensor) for value in held)


def test_the_models_own_loss_is_there(model):
    ids = random_tokens(2, 10)
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_what_was_written_changes_what_is_read(model):
    state, question = model.new_memory(), random_tokens(1, 6, seed=1)
    empty = write(model, state, question, write=False)
    write(model, state, random_tokens(1, 10))
    assert not torch.allclose(write(model, state, question, write=False), empty, atol=1e-3)


def test_reading_leaves_the_state_bit_for_bit(model):
    state = model.new_memory()
    write(model, state, random_tokens(1, 10))
    before = state.clone()
    write(model, state, random_tokens(1, 7, seed=3), write=False)
    assert same(state, before, tolerance=0)


def test_two_sessions_on_one_model_interleave(model):
    turns = [random_tokens(1, 8, seed=seed) for seed in range(4)]
    alone = [model.new_memory() for _ in range(2)]
    mixed = [model.new_memory() for _ in range(2)]
    for who in (0, 1):
        for turn in turns[who::2]:
            write(model, alone[who], turn)
    for index, turn in enumerate(turns):
        write(model, mixed[index % 2], turn)
    assert all(same(a, m, tolerance=0) for a, m in zip(alone, mixed, strict=True))


def test_threads_do_not_see_each_others_memory(model):
    def chat(seed, into):
        state = model.new_memory()
        for turn in range(6):
            into.append(write(model, state, random_tokens(1, 8, seed=100 * seed + turn)))

    alone, together = ([[], []] for _ in range(2))
    for seed in (0, 1):
        chat(seed, alone[seed])
    threads = [threading.Thread(target=chat, args=(seed, together[seed])) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(a, t, atol=1e-6) for seed in (0, 1) for a, t in zip(alone[seed], together[seed], strict=True))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_depends_on_its_own_tokens_alone(attn, side):
    model = tiny_adapted(attn=attn)
    rows = [random_tokens(1, length, seed=length) for length in (5, 9)]
    ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(9 - tokens.shape[1], 9) if side == "left" else slice(0, tokens.shape[1])
        ids[row, place], mask[row, place] = tokens, 1
    together = model.new_memory(2)
    with torch.no_grad(), model.memory(together):
        model(input_ids=ids, attention_mask=mask)
    for row, tokens in enumerate(rows):
        alone = model.new_memory()
        write(model, alone, tokens)
        assert same(together[row], alone)
    unmasked = model.new_memory(2)
    write(model, unmasked, ids)  # the control: padding that counts gives another memory
    assert not same(unmasked[0], together[0], tolerance=1e-3)


def test_where_a_text_is_cut_does_not_matter(model):
    ids = random_tokens(1, 20)
    whole, cut = model.new_memory(), model.new_memory()
    write(model, whole, ids)
    cache = None
    for piece in ids.split([7, 1, 12], dim=1):
        with torch.no_grad(), model.memory(cut):
            cache = model(input_ids=piece, past_key_values=cache, use_cache=True).past_key_values
    assert same(whole, cut)


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_memory_that_turns_bad_is_not_kept(kind):
    model = tiny_adapted()
    state = model.new_memory()
    write(model, state, random_tokens(1, 5))
    before = state.clone()
    embeddings = torch.randn(1, 4, 32)
    embeddings[0, 2] = float(kind)
    with pytest.raises(FloatingPointError, match=r"model\.layers\.\d\.self_attn became NaN or infinite"), torch.no_grad():
        with model.memory(state):
            model(input_ids=random_tokens(1, 5))
            model(inputs_embeds=embeddings)
    assert same(state, before, tolerance=0)


def test_nan_in_the_padding_reaches_nothing(model):
    embeddings = torch.randn(1, 6, 32)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    padded, alone = model.new_memory(), model.new_memory()
    bad = embeddings.clone()
    bad[0, :2] = float("nan")
    layer = next(layer for layer in model.modules() if isinstance(layer, DeltaMemLayer))
    with torch.no_grad(), model.memory(padded):
        model(inputs_embeds=torch.where(mask[..., None].bool(), embeddings, 7.0), attention_mask=mask)
    with torch.no_grad(), model.memory(alone):
        model(inputs_embeds=embeddings[:, 2:])
    assert same(padded, alone)
    memory = MemoryPass(Contents.empty(1, mask.device), mask.bool(), write=True, segments=None, batch=1, tokens=6)
    with torch.no_grad():
        reads = layer._read_and_write("default", memory, bad)
    assert reads.isfinite().all()
    assert memory.end[layer.name].isfinite().all()


def test_an_error_in_the_block_undoes_it(model):
    state = model.new_memory()
    with pytest.raises(KeyError), torch.no_grad(), model.memory(state):
        model(input_ids=random_tokens(1, 5))
        raise KeyError
    assert same(state, model.new_memory(), tolerance=0)


def test_the_state_is_a_plain_value_after_the_block(model):
    state = model.new_memory()
    with model.memory(state):
        model(input_ids=random_tokens(1, 5))
        assert all(tensor.requires_grad for tensor in state.tensors.values())
    assert not any(tensor.requires_grad for tensor in state.tensors.values())
    with torch.inference_mode(), model.memory(state):
        model(input_ids=random_tokens(1, 5))
    assert not any(tensor.is_inference() for tensor in state.tensors.values())


def test_gradients_pass_from_the_read_to_the_write():
    model = tiny_adapted()
    state = model.new_memory()
    with model.memory(state, detach=False):
        model(input_ids=random_tokens(1, 8))
    with model.memory(state, write=False):
        model(input_ids=random_tokens(1, 4, seed=5)).logits.sum().backward()
    layer = next(layer for layer in model.modules() if isinstance(layer, DeltaMemLayer))
    values = layer.delta_mem_in["default"].weight.grad[8:12]  # only what is written can reach the values' rows
    assert values.abs().max() > 0


def gradients(checkpointing=None):
    """Of the adapter, through a write pass and a read pass."""
    model = tiny_adapted().train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.enable_input_require_grads()
    state = model.new_memory()
    with model.memory(state, detach=False):
        model(input_ids=random_tokens(1, 8), use_cache=False)
    with model.memory(state, write=False):
        model(input_ids=random_tokens(1, 4, seed=5), use_cache=False).logits.pow(2).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(use_reentrant):
    plain, checkpointed = gradients(), gradients({"use_reentrant": use_reentrant})
    assert plain
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_state_of_another_batch_size_is_refused(model):
    state = model.new_memory(2)
    with pytest.raises(ValueError, match="holds 2 rows, but the pass has 3"):
        write(model, state, random_tokens(3, 5))
    assert same(state, model.new_memory(2), tolerance=0)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None])
def test_a_wrong_batch_size_is_refused(model, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        model.new_memory(batch_size)


@pytest.mark.parametrize("state", [None, {}, "alice.safetensors"])
def test_what_is_no_memory_is_refused(model, state):
    with pytest.raises(TypeError, match="DeltaMemState"):
        model.memory(state)


@pytest.mark.parametrize("other", [tiny_config(r=2), tiny_config(num_states=2), tiny_config(layers_to_transform=[0])])
def test_the_memory_of_another_shape_is_refused(model, other):
    state = tiny_adapted(other).new_memory()
    with pytest.raises(ValueError, match="does not fit the active adapter"):
        model.memory(state)


def test_the_memory_of_another_adapter_is_refused_with_both_named(model, tmp_path):
    other = tiny_adapted(seed=7)
    state = other.new_memory()
    write(other, state, random_tokens(1, 5))
    state.save(tmp_path / "memory.safetensors")
    loaded = DeltaMemState.load(tmp_path / "memory.safetensors")
    names = f"{other.base_model.fingerprint()}.*{model.base_model.fingerprint()}"
    with pytest.raises(ValueError, match=names):
        model.memory(loaded)
    write(other, loaded, random_tokens(1, 5))  # its own adapter takes it


def test_the_fingerprint_follows_the_weights():
    model = tiny_adapted()
    before = model.base_model.fingerprint()
    assert tiny_adapted().base_model.fingerprint() == before
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1e-3)
    assert model.base_model.fingerprint() != before


def test_without_an_active_adapter_there_is_no_memory(model):
    with model.disable_adapter(), pytest.raises(ValueError, match="no δ-mem adapter is active"):
        model.new_memory()


def test_packed_rows_are_refused(model):
    with pytest.raises(NotImplementedError, match="cu_seq_lens_q"):
        model(input_ids=random_tokens(1, 5), cu_seq_lens_q=torch.tensor([0, 2, 5]))


# --------------------------------------------------------------------------------------------- segments (SSW adapters)


@pytest.fixture(scope="module")
def ssw():
    return tiny_adapted(tiny_config(write="message"))


def test_writing_segments_needs_their_ids(ssw):
    state = ssw.new_memory()
    with pytest.raises(ValueError, match="segment_ids="):
        write(ssw, state, random_tokens(1, 5))
    assert same(state, ssw.new_memory(), tolerance=0)


def test_without_a_kept_memory_segments_are_not_asked_for(ssw):
    with torch.no_grad():
        assert torch.equal(ssw(input_ids=random_tokens(1, 5)).logits, ssw.unload()(input_ids=random_tokens(1, 5)).logits)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 4, dtype=torch.long), r"shape \(1, 4\), but the pass has 1 rows of 5"),
        (torch.zeros(5, dtype=torch.long), "whole numbers"),
        (torch.zeros(1, 5), "whole numbers"),
    ],
)
def test_wrong_segment_ids_are_refused(message, ids):
    model = tiny_adapted(tiny_config(write="sentence"))
    state = model.new_memory()
    with pytest.raises(ValueError, match=message):
        write(model, state, random_tokens(1, 5), segment_ids=ids)
    assert same(state, model.new_memory(), tolerance=0)


def test_token_writers_take_no_segment_ids(model):
    with pytest.raises(ValueError, match="write='token'"):
        model.memory(model.new_memory(), segment_ids=torch.zeros(1, 5, dtype=torch.long))


def test_only_the_order_of_segment_ids_counts():
    model = tiny_adapted(tiny_config(write="message"))
    ids, states = random_tokens(2, 6), [model.new_memory(2) for _ in range(2)]
    dense = torch.tensor([[-1, 0, 0, 1, 1, 2], [0, 0, 0, 0, 2, 2]])
    for state, segment_ids in zip(states, (dense, torch.where(dense >= 0, dense * 1_000_000 + 3, -1)), strict=True):
        write(model, state, ids, segment_ids=segment_ids)
    assert same(*states, tolerance=0)


def test_segments_of_a_row_do_not_depend_on_the_others():
    model = tiny_adapted(tiny_config(write="message"))
    ids = random_tokens(2, 6)
    segment_ids = torch.tensor([[0, 0, 1, 1, 1, 2], [-1, -1, -1, 1, 1, -1]])
    together = model.new_memory(2)
    write(model, together, ids, segment_ids=segment_ids)
    for row in (0, 1):
        alone = model.new_memory()
        write(model, alone, ids[row : row + 1], segment_ids=segment_ids[row : row + 1])
        assert same(together[row], alone)


def test_a_block_of_one_model_is_none_of_another():
    first, second = tiny_adapted(), tiny_adapted(backbone=tiny_backbone(seed=3))
    state = first.new_memory()
    with torch.no_grad(), first.memory(state):
        second(input_ids=random_tokens(3, 5))
    assert same(state, first.new_memory(), tolerance=0)

"""The `with model.memory(state)` block: what is read, what is written, and what is refused before anything is changed."""

import pytest
import torch
from tiny import random_tokens, tiny_adapted, tiny_backbone, tiny_config

from deltamem import DeltaMemState
from deltamem.layer import DeltaMemLayer


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


@pytest.mark.parametrize(
    "other", [tiny_config(r=2), tiny_config(kind="delta", num_states=2), tiny_config(layers_to_transform=[0])]
)
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


def test_held_weights_are_hashed_once():
    model = tiny_adapted()
    with model.weights_held():
        before = model.base_model.fingerprint()
        with model.weights_held(), torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).add_(1e-3)
        assert model.base_model.fingerprint() == before  # what the caller promised is not looked at
    assert model.base_model.fingerprint() != before


def by_a_fused_optimizer(model, weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()


def in_data(model, weight):
    weight.data.neg_()


@pytest.mark.parametrize("change", [by_a_fused_optimizer, in_data])
def test_so_does_what_no_version_counts(change):
    model = tiny_adapted()
    old = model.new_memory()
    write(model, old, random_tokens(1, 5))
    weight = next(p for p in model.parameters() if p.requires_grad)
    version = weight._version
    change(model, weight)
    assert weight._version == version  # which is why it cannot be asked
    with pytest.raises(ValueError, match="was written by the adapter"):
        model.memory(old)
    new = model.new_memory()
    write(model, new, random_tokens(1, 5))
    assert new.fingerprint == model.base_model.fingerprint() != old.fingerprint


def test_without_an_active_adapter_there_is_no_memory(model):
    state = model.new_memory()
    with model.disable_adapter():
        for use in (model.new_memory, lambda: model.memory(state)):
            with pytest.raises(ValueError, match="no δ-mem adapter is active"):
                use()
    unloaded = tiny_adapted()
    unloaded.unload()
    with pytest.raises(ValueError, match="no δ-mem adapter is active"):
        unloaded.memory(state)


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


def test_a_block_of_one_model_is_none_of_another():
    first, second = tiny_adapted(), tiny_adapted(backbone=tiny_backbone(seed=3))
    state = first.new_memory()
    with torch.no_grad(), first.memory(state):
        second(input_ids=random_tokens(3, 5))
    assert same(state, first.new_memory(), tolerance=0)

import itertools
import threading

import pytest
import torch
from tiny import random_tokens, tiny_adapted, tiny_config
from transformers import DynamicCache

from deltamem.inspection import left_of, writes_of
from deltamem.rule.reference import reference_delta_rule

CONFIGS = {
    "tsw": {},
    "msw": {"num_states": 3},
    "learned": {"decay": "learned", "decay_first": True},
    "one gate, no decay": {"decay": "none", "rowwise_gates": False},
}


def model_of(**options):
    return tiny_adapted(tiny_config(**options))


def write(model, state, tokens, **inputs):
    with model.memory(state):
        return writes_of(model, input_ids=tokens, **inputs)


def replayed(written):
    """The states before every write and after the last, by the token loop that defines the rule, one write at a time."""
    gated = (written.k, written.v, written.keep, written.erase, written.write)
    states = [written.start]
    for index in range(written.k.shape[2]):
        k, v, keep, erase, gate = (part[:, :, index : index + 1] for part in gated)
        states.append(reference_delta_rule(k, k, v, keep, erase, gate, states[-1])[1])
    return torch.stack(states, dim=2)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_the_writes_are_those_that_the_reference_rule_would_make_of_them(options):
    model = model_of(**options)
    state = model.new_memory(2)
    write(model, state, random_tokens(2, 4, seed=1))
    before = state.tensors
    written = write(model, state, random_tokens(2, 6))
    assert [*written] == [*before]
    for name, layer in written.items():
        states = replayed(layer)
        torch.testing.assert_close(layer.start, before[name])
        torch.testing.assert_close(layer.states, states)
        torch.testing.assert_close(states[:, :, -1], state.tensors[name])
        found = torch.einsum("bntij,bntj->bnti", states[:, :, :-1], layer.k)
        torch.testing.assert_close(layer.error, layer.write * layer.v - layer.erase * found)
        torch.testing.assert_close(layer.change, (states[:, :, 1:] - states[:, :, :-1]).norm(dim=(-2, -1)))
        torch.testing.assert_close(layer.gate, layer.write.mean(-1))
        assert layer.write_of_token.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_padding_writes_nothing():
    model, tokens = model_of(), random_tokens(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    for layer in write(model, model.new_memory(2), tokens, attention_mask=mask).values():
        assert layer.write_of_token.tolist() == [[-1, -1, 2, 3, 4], [0, 1, 2, 3, 4]]
        assert (layer.change[0, :, :2] == 0).all()
        assert (layer.change[0, :, 2:] > 0).all()
        assert (layer.gate[0, :, :2] == 0).all()
        assert (layer.error[0, :, :2] == 0).all()


# Plain; one that hands no keywords down; one with a norm before its projections.
@pytest.mark.parametrize(
    ("model_type", "options"), [("llama", {}), ("stablelm", {}), ("roberta-prelayernorm", {"is_decoder": True})]
)
def test_segments_are_written_as_the_model_wrote_them(model_type, options):
    model = tiny_adapted(tiny_config(write="message"), model_type=model_type, **options)
    state = model.new_memory()
    ids = torch.tensor([[-1, 0, 0, 7, 7, -1]])
    with model.memory(state, segment_ids=ids, keep_open=True):
        first = writes_of(model, input_ids=random_tokens(1, 6))
    with model.memory(state, segment_ids=torch.tensor([[7, 8]])):
        second = writes_of(model, input_ids=random_tokens(1, 2, seed=1))
    for name, layer in first.items():
        assert layer.write_of_token.tolist() == [[-1, 0, 0, 1, 1, -1]]
        assert layer.change[0, 0, 1] == 0  # it stays open
        torch.testing.assert_close(replayed(layer)[:, :, -1], second[name].start)
        torch.testing.assert_close(replayed(second[name])[:, :, -1], state.tensors[name])


def test_a_pass_with_nothing_to_write_leaves_no_writes():
    model = model_of(write="message")
    with model.memory(model.new_memory(), segment_ids=torch.tensor([[-1, -1, -1]])):
        written = writes_of(model, input_ids=random_tokens(1, 3))
    assert all(layer.k.shape[2] == 0 and layer.states.shape[2] == 1 for layer in written.values())


def test_a_pass_that_does_not_write_is_refused():
    model = model_of()
    with model.memory(model.new_memory(), write=False), pytest.raises(ValueError, match="the pass wrote nothing"):
        writes_of(model, input_ids=random_tokens(1, 3))
    with model.disable_adapter(), pytest.raises(ValueError, match="the pass wrote nothing"):
        writes_of(model, input_ids=random_tokens(1, 3))


def test_looking_changes_nothing_and_leaves_nothing_behind():
    model, tokens = model_of(), random_tokens(1, 5)
    state, other = model.new_memory(), model.new_memory()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    write(model, state, tokens)
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    with model.memory(other), torch.no_grad():
        model(input_ids=tokens)
    assert all(torch.equal(state.tensors[name], other.tensors[name]) for name in state.tensors)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_the_state_is_the_sum_of_what_is_left_of_each_pass(options):
    model = model_of(**options)
    state, cache = model.new_memory(2), DynamicCache(config=model.config)
    write(model, state, random_tokens(2, 3, seed=9))
    passes, ends = [], []
    for seed, tokens in enumerate((4, 1, 6)):
        passes.append(write(model, state, random_tokens(2, tokens, seed), past_key_values=cache))
        ends.append(state.tensors)
    for name in state.tensors:
        left = left_of([written[name] for written in passes])
        assert [len(parts) for parts in left] == [2, 3, 4]
        for parts, end in zip(left, ends, strict=True):
            torch.testing.assert_close(parts.sum(0), end[name])
        # Nothing that is left ever grows.
        for earlier, later in itertools.pairwise(left):
            assert (later[:-1].norm(dim=(-2, -1)) <= earlier.norm(dim=(-2, -1)) + 1e-6).all()


def test_what_is_left_of_a_pass_is_what_it_would_have_left_alone():
    """Against a replay in which only the values of one pass are not zero."""
    model = model_of(num_states=2)
    state = model.new_memory()
    first = write(model, state, random_tokens(1, 4))
    second = write(model, state, random_tokens(1, 4, seed=1))
    for name in state.tensors:
        nothing = torch.zeros_like(first[name].v)
        one, two = first[name], second[name]
        alone = reference_delta_rule(one.k, one.k, one.v, one.keep, one.erase, one.write, one.start)[1]
        alone = reference_delta_rule(two.k, two.k, nothing, two.keep, two.erase, two.write, alone)[1]
        torch.testing.assert_close(left_of([one, two])[1][1], alone)


def test_a_pass_of_another_thread_is_not_recorded():
    model = tiny_adapted()
    alone = writes_of(model, input_ids=random_tokens(1, 9))

    def other_user(module, args):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: model(input_ids=random_tokens(2, 5, seed=1)))
            thread.start()
            thread.join()

    handle = model.get_submodule("base_model.model.model.layers.1").register_forward_pre_hook(other_user)
    beside = writes_of(model, input_ids=random_tokens(1, 9))
    handle.remove()
    assert all(torch.equal(beside[layer].k, alone[layer].k) for layer in alone)

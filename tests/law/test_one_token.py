"""Decoding on a CPU takes a shorter way than longer passes do. It ends where theirs does."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from oracle import adapted, decode_steps_taken, error, told
from tiny import FAMILIES, random_tokens, tiny_backbone, tiny_config
from torch import Tensor, nn

from deltamem import DeltaMemState
from deltamem.forward import call as carrier
from deltamem.memory.snapshot import Snapshot
from deltamem.rule.backends import importable

pytestmark = pytest.mark.skipif(not importable("compiled"), reason="needs Numba")

CONFIGS: dict[str, dict[str, Any]] = {
    "several states": {"num_states": 3, "decay": "learned", "decay_first": True},
    "one gate for a state": {"rowwise_gates": False, "decay": "none"},
    "all corrections": {"corrections": ("q", "k", "v", "o")},
    "whole lanes and a rest": {"r": 9},
}


# Of parameters that stay the same: a memory is refused by other ones.
CHANGES: dict[str, Any] = {
    "in place": lambda entrance: entrance.weight.data.mul_(1.5),
    "by others": lambda entrance: setattr(entrance.weight, "data", 1.5 * entrance.weight.data),
}


@pytest.fixture
def taken(monkeypatch):
    """What went the shorter way, pass by pass; None if it could not."""
    return decode_steps_taken(monkeypatch)


@torch.no_grad()
def decoded(
    model, state: DeltaMemState, write: bool = True, change: Any = lambda: None, one_block: bool = False
) -> tuple[Tensor, DeltaMemState]:
    """Logits of three tokens, a pass each, and the memory after them; `change` is called between them.

    In one block every token starts from where the one before left the memory, else from the memory.
    """
    state, cache, logits = state.clone(), None, []

    def block(wanted: bool) -> Any:
        return model.memory(state, write=write) if wanted else nullcontext()

    with block(one_block):
        for token in random_tokens(3, len(state), seed=5):
            with block(not one_block):
                output = model(input_ids=token[:, None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
            change()
            state.fingerprint = None  # a memory of other weights would be refused
    return torch.stack(logits), state


def assert_same_both_ways(monkeypatch, run: Any, **tolerance: float) -> None:
    logits, memory = run()
    monkeypatch.setattr(carrier, "_decode_step", lambda *_: None)
    expected, same_memory = run()
    torch.testing.assert_close(logits, expected, **{"atol": 1e-5, "rtol": 0, **tolerance})
    assert error(memory, same_memory) < 1e-5


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_in_every_kind_of_attention(monkeypatch, taken, model_type, rows, write):
    model = adapted(model_type)
    assert_same_both_ways(monkeypatch, lambda: decoded(model, told(model, rows), write))
    assert [len(token.reached) for token in taken] == [2, 2, 2]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("write", [True, False])
def test_a_token_goes_on_from_where_the_one_before_stopped(monkeypatch, taken, write, rows):
    model = adapted()
    assert_same_both_ways(monkeypatch, lambda: decoded(model, told(model, rows), write, one_block=True))
    first, *others = taken
    for token in others:
        assert token._before is first._after  # nothing was copied
        first = token


def test_the_layers_of_a_memory_may_be_in_another_order(monkeypatch):
    """As in a file, where layer 10 comes before layer 2."""
    model = adapted()
    start = told(model)
    turned = DeltaMemState(Snapshot.from_flat(dict(reversed(start.snapshot.to_flat().items()))), start.fingerprint)
    assert turned.snapshot.layers == start.snapshot.layers[::-1]
    assert_same_both_ways(monkeypatch, lambda: decoded(model, turned))


def test_a_layer_without_the_adapter_is_left_alone(monkeypatch, taken):
    model = adapted()
    torch.manual_seed(7)
    model.add_adapter("upper", tiny_config(init="random", layers_to_transform=[1]))
    model.set_adapter("upper")
    model.eval()
    assert_same_both_ways(monkeypatch, lambda: decoded(model, told(model)))
    assert [[*token.reached] for token in taken] == [["model.layers.1.self_attn"]] * 3


@pytest.mark.parametrize("name", CONFIGS)
def test_with_every_kind_of_memory(monkeypatch, taken, name):
    model = adapted(config=tiny_config(**CONFIGS[name]), hidden_size=36)  # no multiple of eight
    assert_same_both_ways(monkeypatch, lambda: decoded(model, told(model, rows=2)))
    assert all(taken)


def test_a_memory_of_segments_is_read(monkeypatch, taken):
    model = adapted(config=tiny_config(write="message"))
    state = model.new_memory()
    with torch.no_grad(), model.memory(state, segment_ids=torch.zeros(1, 12, dtype=torch.int64)):
        model(input_ids=random_tokens(1, 12))
    assert_same_both_ways(monkeypatch, lambda: decoded(model, state, write=False))
    assert all(taken)


def test_in_half_precision(monkeypatch, taken):
    model = adapted(backbone=tiny_backbone(dtype=torch.bfloat16))
    assert_same_both_ways(monkeypatch, lambda: decoded(model, told(model)), atol=0.02)
    assert all(taken)


@pytest.mark.parametrize("one_block", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_change_between_tokens(monkeypatch, taken, name, one_block):
    model = adapted()
    entrance = model.get_submodule("base_model.model.model.layers.0.self_attn.delta_mem_in.default")
    weight = entrance.weight.detach().clone()

    def run() -> tuple[Tensor, DeltaMemState]:
        entrance.weight = nn.Parameter(weight.clone())
        return decoded(model, told(model), change=lambda: CHANGES[name](entrance), one_block=one_block)

    assert_same_both_ways(monkeypatch, run)
    assert all(taken)


def test_an_adapter_of_the_same_name_takes_the_place_of_another(monkeypatch, taken):
    model = adapted()

    def run() -> tuple[Tensor, DeltaMemState]:
        decoded(model, told(model))
        model.delete_adapter("default")
        torch.manual_seed(7)
        model.add_adapter("default", tiny_config(init="random"))
        model.set_adapter("default")
        return decoded(model.eval(), told(model))

    assert_same_both_ways(monkeypatch, run)
    assert all(taken)


def test_what_it_is_not_for(taken):
    model = adapted()
    state = told(model, rows=2)
    with torch.no_grad(), model.memory(state):
        model(input_ids=random_tokens(2, 1), attention_mask=torch.tensor([[1], [0]]))  # padding
    with torch.no_grad():
        model(input_ids=random_tokens(1, 2))
    model(input_ids=random_tokens(1, 1))  # with gradients
    assert not any(taken)
    decoded(model.double(), told(model))  # the adapter's weights, too
    assert taken
    assert not any(taken)
    decoded(model.float(), told(model))
    assert all(taken[-3:])

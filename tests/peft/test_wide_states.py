"""Several states may together be wider than the model's hidden states: each has maps of its own from them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tiny import random_tokens, tiny_adapted, tiny_backbone, tiny_config
from torch import Tensor

from deltamem.convert import from_reference, to_reference
from deltamem.layer import BASE_SLICE_COLUMNS, BASE_SLICE_GAIN

WIDTH, R, STATES = 32, 16, 3  # 48 numbers are read of hidden states of 32
WIDE: dict[str, Any] = {"r": R, "num_states": STATES}
VARIANTS: dict[str, dict[str, Any]] = {
    "coupled": {},
    "learned, decay first": {"decay": "learned", "decay_first": True},
    "one gate for a state, no decay": {"rowwise_gates": False, "decay": "none"},
    "all corrections": {"corrections": ("q", "k", "v", "o")},
}


def plainly(weight: Tensor, bias: Tensor, hidden: Tensor, decay: str, decay_first: bool, gate_rows: int) -> Tensor:
    """The states `[STATES, R, R]` after the tokens of hidden states `[tokens, WIDTH]`, by the rule as the paper has it."""
    heights = [STATES * R] * 3 + [STATES * gate_rows] * (2 if decay == "learned" else 1)
    _, keys, values, *gates = [hidden @ part.T for part in weight.split(heights)]
    opened = [torch.sigmoid(gate + part) for gate, part in zip(gates, bias.split(heights[3:]), strict=True)]
    states = torch.zeros(STATES, R, R)
    for t in range(len(hidden)):
        for n in range(STATES):
            rows, own = slice(n * R, (n + 1) * R), slice(n * gate_rows, (n + 1) * gate_rows)
            k, v = F.normalize(torch.tanh(keys[t, rows]), dim=0, eps=1e-6), values[t, rows]
            beta = opened[0][t, own].expand(R)[:, None]
            keep = {"coupled": 1 - beta, "learned": opened[-1][t, own].expand(R)[:, None], "none": torch.ones(R, 1)}[decay]
            seen = keep * states[n] if decay_first else states[n]
            states[n] = keep * states[n] + beta * torch.outer(v - seen @ k, k)
    return states


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_they_are_written_by_the_plain_rule(variant: str) -> None:
    config = tiny_config(**WIDE, **VARIANTS[variant])
    model, ids, seen = tiny_adapted(config), random_tokens(1, 7), {}
    layers = dict(model.base_model._layers)
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen.update({name: kwargs["hidden_states"][0]}), with_kwargs=True
        )
    state = model.new_memory()
    with model.memory(state):
        model(ids)
    for name, layer in layers.items():
        weights = layer.adapter_weights("default")
        gate_rows = config.r if config.rowwise_gates else 1
        expected = plainly(weights["in"], weights["gate_bias"], seen[name], config.decay, config.decay_first, gate_rows)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(state.tensors[name][0], expected, atol=1e-5, rtol=0)
        assert not torch.allclose(state.tensors[name][0][0], expected[1], atol=1e-3)  # the control: the states differ


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_token_by_token_is_as_all_at_once(variant: str) -> None:
    model, ids = tiny_adapted(tiny_config(**WIDE, **VARIANTS[variant])), random_tokens(2, 7)
    whole, cut = model.new_memory(2), model.new_memory(2)
    with model.memory(whole):
        logits = model(ids).logits
    cache, pieces = None, []
    with model.memory(cut):
        for token in ids.split(1, dim=1):
            output = model(token, past_key_values=cache, use_cache=True)
            cache, pieces = output.past_key_values, [*pieces, output.logits]
    torch.testing.assert_close(torch.cat(pieces, dim=1), logits, atol=1e-5, rtol=0)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(cut.tensors[name], tensor, atol=1e-5, rtol=0)
    with model.memory(whole, write=False):
        assert not torch.allclose(model(ids).logits, logits, atol=1e-5)  # what is read of them corrects the projections


@torch.no_grad()
def test_corrections_start_as_columns_of_the_frozen_weights() -> None:
    model = get_peft_model(tiny_backbone(), tiny_config(**WIDE, init="base_slice"))
    for layer in model.base_model._layers.values():
        for role, projection in (("q", layer.base_layer.q_proj), ("o", layer.base_layer.o_proj)):
            weight = layer.adapter_weights("default")[role]
            assert tuple(weight.shape) == (projection.weight.shape[0], STATES * R)
            columns = BASE_SLICE_GAIN * F.normalize(projection.weight[:, :BASE_SLICE_COLUMNS], dim=0)
            torch.testing.assert_close(weight[:, :BASE_SLICE_COLUMNS], columns)
            assert not weight[:, BASE_SLICE_COLUMNS:].any()


@torch.no_grad()
def test_they_go_to_the_reference_and_back() -> None:
    model = tiny_adapted(tiny_config(**WIDE))
    options, tensors = to_reference(model.peft_config["default"], get_peft_model_state_dict(model))
    config, weights = from_reference(options, tensors)
    other = get_peft_model(tiny_backbone(), config)
    set_peft_model_state_dict(other, weights)
    assert torch.equal(other.eval()(random_tokens(1, 5)).logits, model(random_tokens(1, 5)).logits)


@pytest.mark.parametrize(("r", "states"), [(WIDTH, 1), (WIDTH, 16), (4, 128)])
def test_the_limit_is_a_states_width(r: int, states: int) -> None:
    assert tiny_adapted(tiny_config(r=r, num_states=states)).new_memory().nbytes == 2 * states * r * r * 4


@pytest.mark.parametrize(("r", "states"), [(WIDTH + 1, 1), (WIDTH, 17), (1, 513)])
def test_beyond_the_limit_is_refused(r: int, states: int) -> None:
    with pytest.raises(ValueError, match=f"r={r} and num_states={states} are not accepted"):
        tiny_adapted(tiny_config(r=r, num_states=states))

"""The contract: what holds of every architecture in the registry. The families are data, in `families/`."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from checks import CHECKS, TOLERANCE, logits
from families import FAMILIES
from family import adapted, bare, tokens
from nightly import by_day
from peft import PeftModel
from tiny import KIND, MODEL_TYPES

from deltamem.hook.registered import registered_hook
from deltamem.layer import DeltaMemLayer

CASES = [pytest.param(name, family, id=name) for name, family in FAMILIES.items()]


def alike(case):
    """What two types share that go the same way through our code, and through transformers' own as far as it has faults."""
    model_type, family = case.values
    hook = registered_hook(model_type.partition(":")[0])
    return repr(hook), *map(tuple, (sorted(family.lacks), family.without, family.unpack)), family.attention


# Of types that differ in their numbers alone one stands for all in most tests, a well-known one if there is one.
IN_ORDER = sorted(CASES, key=lambda case: (alike(case), case.id not in MODEL_TYPES))
FULL = by_day([next(cases) for _, cases in itertools.groupby(IN_ORDER, alike)], CASES)
ROLES = ("q", "k", "v", "o")


def corrected_roles(family):
    return tuple(role for role in ROLES if role not in family.without)


def layers_of(model):
    return {name: module for name, module in model.base_model.model.named_modules() if isinstance(module, DeltaMemLayer)}


def memory_of(model, rows=2):
    """A memory that is not empty."""
    state = model.new_memory(rows)
    generator = torch.Generator().manual_seed(3)
    for tensor in state.tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return state


@pytest.mark.parametrize(("model_type", "family"), CASES)
def test_every_attention_layer_has_a_memory_and_nothing_else(model_type, family):
    model = adapted(bare(model_type, family))
    layers = layers_of(model)
    assert len(layers) == family.attention
    assert [*model.new_memory().snapshot.layers] == [*layers]
    assert not [n for n, p in model.named_parameters() if p.requires_grad and not any(layer in n for layer in layers)]


@pytest.mark.parametrize(("model_type", "family"), CASES)
def test_disabled_or_empty_it_is_the_bare_model_bit_for_bit(model_type, family):
    backbone, ids = bare(model_type, family), tokens(2, 12)
    before = logits(backbone, ids)
    model = adapted(backbone)
    assert not torch.equal(logits(model, ids), before)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), before)
    with model.memory(model.new_memory(2), write=False):
        assert torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model.unload(), ids), before)


@pytest.mark.parametrize(("model_type", "family"), CASES)
def test_a_correction_enters_where_the_method_says(model_type, family):
    """Role by role, beside a bare model altered by hand: the memory is read from what enters the first projection."""
    for role in family.without:
        with pytest.raises(ValueError, match=r"no projection .* that could be corrected|no attention"):
            adapted(bare(model_type, family), corrections=(role,))
    ids, roles = tokens(2, 12), corrected_roles(family)
    model, by_hand = adapted(bare(model_type, family), corrections=roles), bare(model_type, family)
    state, layers, uncorrected = memory_of(model), layers_of(model), logits(by_hand, ids, use_cache=False)
    weights = {name: layer.adapter_weights("default") for name, layer in layers.items()}
    drawn = {name: {role: weight.detach().clone() for role, weight in of_layer.items()} for name, of_layer in weights.items()}
    for role in roles:
        for name, of_layer in weights.items():
            for other in {*roles} & {*of_layer}:
                of_layer[other].data.copy_(drawn[name][other] * (other == role))
        with model.memory(state, write=False):
            got = logits(model, ids, use_cache=False)
        correcting = [layer for layer in layers.values() if role in layer.projections]
        handles = [handle for layer in correcting for handle in correct_by_hand(by_hand, family, role, model, layer, state)]
        expected = logits(by_hand, ids, use_cache=False)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(got, expected, **TOLERANCE, msg=lambda text, role=role: f"{role}: {text}")
        difference = (expected - uncorrected).abs().max()
        assert difference > 10 * TOLERANCE["atol"], f"{role} is hardly felt: give the small model larger weights"


def correct_by_hand(by_hand, family, role, model, layer, state):
    """Hooks on the bare model's attention that add an adapted layer's correction of a role to its projection."""
    config, weights, seen = layer.adapters["default"].config, layer.adapter_weights("default"), {}
    memory, attention = state.snapshot.state(layer.name), by_hand.get_submodule(layer.name)

    def read(module, args):
        projected = args[0] @ weights["in"][: config.r].T
        if KIND == "delta":
            query = F.normalize(torch.tanh(projected), dim=-1, eps=1e-6)
            seen["reads"] = query @ memory["state"][:, 0].mT
        else:
            seen["reads"] = config.memory_kind.read(projected, memory, None)

    def alter(module, args, output):
        output = output.clone()
        unpack = family.unpack.get(role)
        part = unpack(output, by_hand.config.get_text_config())[role] if unpack else output
        correction = config.alpha / config.r * seen["reads"] @ weights[role].T
        part += correction.reshape(part.shape)
        return output

    entrance = _name_in(layer.base_layer, model.base_model._hook.entrance(layer.base_layer))
    projection = _name_in(layer.base_layer, layer.projections[role].module)
    yield attention.get_submodule(entrance).register_forward_pre_hook(read)
    yield attention.get_submodule(projection).register_forward_hook(alter)


@pytest.mark.parametrize(("model_type", "family"), FULL)
def test_the_output_correction_changes_the_output_alone(model_type, family):
    """Of the first attention, whose inputs are the same: queries, keys and values stay bit for bit."""
    ids, outputs = tokens(2, 12), []
    model = adapted(bare(model_type, family), corrections=("o",))
    first = next(module for module in model.modules() if isinstance(module, DeltaMemLayer))
    for role, projection in first.projections.items():
        projection.module.register_forward_hook(lambda module, args, output, role=role: outputs.append((role, output)))
    with model.memory(memory_of(model), write=False):
        logits(model, ids, use_cache=False)
    corrected, outputs[:] = [*outputs], []
    with model.disable_adapter():
        logits(model, ids, use_cache=False)
    assert [role for role, _ in corrected] == [role for role, _ in outputs]
    for (role, got), (_, expected) in zip(corrected, outputs, strict=True):
        assert torch.equal(got, expected) == (role != "o"), role


@pytest.mark.parametrize(
    ("model_type", "family", "check"),
    [pytest.param(*case.values, check, id=f"{case.id}-{check}") for check in CHECKS for case in FULL],
)
def test_it_runs_as_transformers_runs_it(model_type, family, check):
    def make(**options):
        return adapted(bare(model_type, family, **options))

    if check not in family.lacks:
        CHECKS[check](make)
        return
    with pytest.raises(Exception) as failure:  # noqa: PT011 (anything: it is transformers that fails)
        CHECKS[check](partial(bare, model_type, family))
    assert not isinstance(failure.value, pytest.fail.Exception)


@pytest.mark.parametrize(("model_type", "family"), FULL)
def test_every_weight_of_the_adapter_is_trained_and_no_other(model_type, family):
    model = adapted(bare(model_type, family), corrections=corrected_roles(family), decay="learned")
    model.train()
    state = model.new_memory(2)
    for state_given in (state, None):  # what is written is felt in the next pass
        with model.memory(state, detach=False, write=state_given is state):
            loss = logits_with_graph(model, tokens(2, 12)).square().mean()
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without
    assert all("delta_mem" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert all(p.grad is None for n, p in model.named_parameters() if "delta_mem" not in n)


def logits_with_graph(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize(("model_type", "family"), FULL)
def test_save_and_load(model_type, family, tmp_path):
    model, ids = adapted(bare(model_type, family)), tokens(2, 12)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bare(model_type, family), tmp_path)
    assert torch.equal(logits(loaded, ids), expected)
    assert math.isfinite(expected.sum())


def _name_in(parent, module):
    return next(name for name, child in parent.named_modules() if child is module)

"""A backbone with an adapter of another PEFT method, wrapped around or injected."""

import pytest
import torch
from backbone_checks import PROJECTIONS, check_generation, check_passes, logits_for
from oracle import TOLERANCE, adapted, error, logits_of, replay
from peft import (
    IA3Config,
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from tiny import random_tokens, tiny_backbone, tiny_config

TARGETS = {
    "llama": {"target_modules": ["q_proj", "o_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "phi3": {"target_modules": ["qkv_proj", "o_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "gpt_neox": {"target_modules": ["query_key_value", "dense", "dense_4h_to_h"], "feedforward_modules": ["dense_4h_to_h"]},
}


def other_config(method, model_type):
    if method == "prefix":
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    targets = TARGETS[model_type]
    if method == "ia3":
        return IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False, **targets)
    return LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=4, target_modules=targets["target_modules"])


def with_other(method, how, model_type="llama", name="other"):
    """A backbone with an adapter of another method: its layers injected, or a PeftModel."""
    backbone, config = tiny_backbone(model_type, "eager"), other_config(method, model_type)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if how == "injected":
            return inject_adapter_in_model(config, backbone, name).eval()
        return get_peft_model(backbone, config, name).eval()


WITH_OTHER = [
    *[("lora", how, model_type) for how in ("injected", "wrapped") for model_type in PROJECTIONS],
    *[("ia3", how, "llama") for how in ("injected", "wrapped")],
]
PREFIXED = [("prefix", "wrapped", "llama"), ("prefix", "wrapped", "phi3")]


@pytest.mark.parametrize(("method", "how", "model_type"), [*WITH_OTHER, *PREFIXED])
def test_a_zero_memory_leaves_the_other_method_alone(method, how, model_type):
    other = with_other(method, how, model_type)
    alone = logits_for(other)
    assert not torch.allclose(alone, logits_for(tiny_backbone(model_type, "eager")), atol=1e-3)  # it does something
    model = adapted(backbone=other)
    assert not torch.allclose(logits_for(model), alone, atol=1e-3)  # and so does the memory
    with model.memory(model.new_memory(2), write=False):
        assert torch.equal(logits_for(model), alone)


@pytest.mark.parametrize(("method", "how", "model_type"), WITH_OTHER)
def test_a_disabled_memory_leaves_the_other_method_alone(method, how, model_type):
    other = with_other(method, how, model_type)
    alone = logits_for(other)
    model = adapted(backbone=other)
    with model.disable_adapter():
        assert torch.equal(logits_for(model), alone)


@pytest.mark.parametrize(("method", "how", "model_type"), WITH_OTHER)
def test_passes_with_another_method(method, how, model_type):
    check_passes(adapted(backbone=with_other(method, how, model_type)))


@pytest.mark.parametrize(("method", "how", "model_type"), WITH_OTHER)
def test_generation_with_another_method(method, how, model_type):
    check_generation(adapted(backbone=with_other(method, how, model_type)))


@pytest.mark.parametrize(("method", "how", "model_type"), PREFIXED)
def test_passes_after_a_prefix(method, how, model_type):
    """Without padding, which peft puts between the prefix and the text, where even the backbone alone sees it."""
    model = adapted(backbone=with_other(method, how, model_type))
    state, ids = model.new_memory(2), random_tokens(2, 8)
    with torch.no_grad(), model.memory(state):
        logits = model(input_ids=ids).logits
    assert state.tokens == [8, 8]
    for row in (0, 1):
        assert error(state[row], replay(model, ids[row])) <= TOLERANCE
        assert (logits[row] - logits_of(model, ids[row])).abs().max() <= TOLERANCE


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("how", ["injected", "wrapped"])
def test_saving_beside_another_method(method, how, tmp_path):
    model = adapted(backbone=with_other(method, how))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(with_other(method, how), tmp_path)
    assert torch.equal(logits_for(loaded), logits_for(model))
    assert loaded.base_model.fingerprint() == model.base_model.fingerprint()


@pytest.mark.parametrize("how", ["injected", "wrapped"])
def test_saving_beside_an_adapter_of_the_same_name(how, tmp_path):
    model = adapted(backbone=with_other("lora", how, name="default"))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(with_other("lora", how), tmp_path)
    assert torch.equal(logits_for(loaded), logits_for(model))


@pytest.mark.parametrize("how", ["injected", "wrapped"])
def test_unloading_leaves_the_other_method(how):
    other = with_other("lora", how)
    alone = logits_for(other)
    assert torch.equal(logits_for(adapted(backbone=other).unload()), alone)


def test_a_memory_inside_a_lora():
    """The other way round: the memory is the first."""
    inner = adapted()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(inner, other_config("lora", "llama"), "other").eval()
    assert not torch.allclose(logits_for(model), logits_for(adapted()), atol=1e-3)
    check_passes(model)
    check_generation(model)


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix"])
def test_peft_keeps_other_methods_out_of_one_peft_model(method):
    """Adapters of one PeftModel are of one method; what is refused changes nothing."""
    model = adapted()
    before = logits_for(model)
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("other", other_config(method, "llama"))
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        PeftMixedModel(tiny_backbone(), tiny_config())
    assert torch.equal(logits_for(model), before)

import pytest
from peft import get_peft_model
from tiny import MODEL_TYPES, tiny_backbone, tiny_config
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import deltamem.hook
from deltamem import AttentionHook, register_hook
from deltamem.hook import find_hook, known_hooks


@pytest.fixture
def registry(monkeypatch):
    """Registrations that end with the test."""
    monkeypatch.setattr(deltamem.hook, "_registered", {})


def test_the_families_come_from_the_entry_points():
    assert {*MODEL_TYPES} <= {*known_hooks()}


def test_an_unknown_model_type_names_the_known_ones_and_how_to_register():
    with pytest.raises(ValueError, match=r"'lama'.*Did you mean 'llama'.*qwen3.*register_hook\('lama'"):
        find_hook("lama")


def test_what_the_user_registers_wins(registry):
    mine = AttentionHook(o="dense")
    register_hook("llama", mine)
    assert find_hook("llama") is mine


@pytest.mark.parametrize(("model_type", "hook"), [("", AttentionHook()), (3, AttentionHook()), ("new", "q_proj")])
def test_a_wrong_registration_is_refused(registry, model_type, hook):
    with pytest.raises(ValueError, match="not accepted"):
        register_hook(model_type, hook)


def test_a_hook_names_modules():
    with pytest.raises(ValueError, match=r"AttentionHook\.q=''"):
        AttentionHook(q="")


def test_a_hook_that_does_not_fit_shows_what_there_is(registry):
    register_hook("llama", AttentionHook(o="dense"))
    backbone = tiny_backbone("llama")
    keys = [*backbone.state_dict()]
    with pytest.raises(ValueError, match=r"'dense'.*q_proj, k_proj, v_proj, o_proj"):
        get_peft_model(backbone, tiny_config())
    assert [*backbone.state_dict()] == keys


def test_a_new_family_takes_a_few_lines(registry):
    config = GPTNeoConfig(vocab_size=61, hidden_size=32, num_layers=1, num_heads=4, attention_types=[[["global"], 1]])
    backbone = GPTNeoForCausalLM(config)
    register_hook("gpt_neo", AttentionHook(attention="attention", o="out_proj"))
    # GPT-Neo nests two modules of this name; only the inner one has projections.
    model = get_peft_model(backbone, tiny_config(target_modules=["attn.attention"]))
    assert [*model.new_memory().tensors] == ["transformer.h.0.attn.attention"]


class Point:
    def __init__(self, value, hooks):
        self.value, self.hooks = value, hooks

    def load(self):
        return self.hooks


def test_two_packages_for_one_model_type_are_an_error_that_names_both(monkeypatch):
    points = [Point("first:HOOKS", {"new": AttentionHook()}), Point("second:HOOKS", {"new": AttentionHook()})]
    monkeypatch.setattr(deltamem.hook, "entry_points", lambda group: points)
    deltamem.hook._packaged_hooks.cache_clear()
    with pytest.raises(ValueError, match="first:HOOKS and second:HOOKS"):
        known_hooks()
    deltamem.hook._packaged_hooks.cache_clear()

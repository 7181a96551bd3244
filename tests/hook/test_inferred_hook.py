"""Hooks for model types that nobody registered."""

import logging

import pytest
import torch
from peft import get_peft_model
from tiny import VOCAB, random_tokens, tiny_backbone, tiny_config
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from deltamem import AttentionHook, register_hook
from deltamem.hook import registered as known_hooks
from deltamem.hook.inferred import infer_hook

WIDTH = 16


@pytest.fixture(autouse=True)
def nobody_registered_anything(monkeypatch):
    monkeypatch.setattr(known_hooks, "_packaged", lambda: {})
    monkeypatch.setattr(known_hooks, "_registered", {})


class ParrotConfig(PreTrainedConfig):
    model_type = "parrot"


class Mixing(nn.Module):
    """Stands in for an attention: all that counts here is what its parts are called, and who hands it what."""

    def __init__(self, *names, width=WIDTH, **others):
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(width, WIDTH))
        for name, module in others.items():
            self.add_module(name, module)

    def forward(self, hidden, **options):
        return sum(getattr(self, name)(hidden) for name in self.names)


class ParrotAttention(Mixing):
    pass


class ParrotCrossAttention(Mixing):
    pass


class ParrotLinearAttention(Mixing):
    pass


class Layer(nn.Module):
    """Runs its parts one after the other, and hands them what keywords it got."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, hidden, **options):
        for part in self.children():
            hidden = hidden + part(hidden, **options)
        return hidden


class SilentLayer(Layer):
    """Takes keywords and keeps them to itself."""

    def forward(self, hidden, **options):
        return super().forward(hidden)


class StrictLayer(Layer):
    """Takes no keywords."""

    def forward(self, hidden):
        return super().forward(hidden)


class Parrot(PreTrainedModel, GenerationMixin):
    config_class = ParrotConfig

    def __init__(self, *layers):
        super().__init__(ParrotConfig(hidden_size=WIDTH, num_hidden_layers=len(layers), vocab_size=VOCAB))
        self.words, self.layers, self.head = nn.Embedding(VOCAB, WIDTH), nn.ModuleList(layers), nn.Linear(WIDTH, VOCAB)

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids=None, **options):
        hidden = self.words(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, **(options if self.takes_keywords(layer) else {}))
        return CausalLMOutput(logits=self.head(hidden))

    def takes_keywords(self, layer):
        return not isinstance(layer, StrictLayer)


LLAMAS = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize(
    "names",
    [
        LLAMAS,
        ("query", "key", "value", "dense"),
        ("wq", "wk", "wv", "wo"),
        ("q_lin", "k_lin", "v_lin", "out_lin"),
        ("to_q", "to_k", "to_v", "to_out"),
    ],
)
def test_projections_of_known_names_are_found_and_what_was_inferred_is_logged(names, caplog):
    q, k, v, o = names
    with caplog.at_level(logging.WARNING):
        model = get_peft_model(Parrot(*(Layer(mixer_attn=Mixing(*names)) for _ in range(2))), tiny_config())
    assert [*model.new_memory().tensors] == ["layers.0.mixer_attn", "layers.1.mixer_attn"]
    said = " ".join(caplog.messages)
    assert f"AttentionHook(attention='mixer_attn', q={q!r}, k={k!r}, v={v!r}, o={o!r}), for 2 modules" in said
    assert "register_hook" in said
    ids = random_tokens(1, 5)
    with model.disable_adapter():
        bare = model(input_ids=ids).logits
    assert not torch.equal(model(input_ids=ids).logits, bare)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mistral", "gemma3_text", "falcon_h1", "qwen2", "smollm3"])
def test_real_models_that_nobody_registered(model_type):
    assert infer_hook(tiny_backbone(model_type)) == AttentionHook()


def test_what_the_user_registers_is_not_inferred(caplog):
    mine = AttentionHook(k=None)
    register_hook("llama", mine)
    with caplog.at_level(logging.WARNING):
        assert known_hooks.hook_for(tiny_backbone("llama")) is mine
    assert not caplog.messages


def test_modules_numbered_in_a_list():
    model = Parrot(Layer())
    model.attentions = nn.ModuleList(Mixing("q_lin", "k_lin", "v_lin", "out_lin") for _ in range(3))
    hook = infer_hook(model)
    assert hook.attention == "attentions.*"
    assert [*hook.attention_modules(model)] == ["attentions.0", "attentions.1", "attentions.2"]


@pytest.mark.parametrize(
    "other",
    [
        {"cross_attn": ParrotAttention(*LLAMAS)},
        {"encoder_attn": ParrotAttention(*LLAMAS)},
        {"attn": ParrotCrossAttention(*LLAMAS)},
        {"vision_attention": Mixing(*LLAMAS)},
        {"delta_attn": ParrotAttention(*LLAMAS)},
        {"attn": ParrotLinearAttention(*LLAMAS)},
        {"mlp": Mixing(*LLAMAS)},
    ],
)
def test_what_attends_to_something_else_or_is_recurrent_is_left_alone(other):
    model = Parrot(Layer(self_attn=ParrotAttention(*LLAMAS)), Layer(**other))
    assert [*infer_hook(model).attention_modules(model)] == ["layers.0.self_attn"]


def test_attention_that_is_not_understood_is_named(caplog):
    model = Parrot(Layer(self_attn=Mixing(*LLAMAS)), Layer(self_attn=Mixing("qkv", "o_proj")))
    with caplog.at_level(logging.WARNING):
        hook = infer_hook(model)
    assert [*hook.attention_modules(model)] == ["layers.0.self_attn"]
    assert "for 1 modules such as layers.0.self_attn; left alone, as not understood: layers.1.self_attn." in caplog.text


REFUSED = {
    "packed": (
        [{"self_attn": ParrotAttention("qkv_proj", "o_proj")}],
        r"layers\.0\.self_attn .* with qkv_proj \(16 → 16\), o_pr",
    ),
    "in a part of their own": (
        [{"self_attn": Mixing(inner=Mixing("query", "key", "value"), out=Mixing("dense"))}],
        r"layers\.0\.self_attn \(Mixing\) with inner\.query \(16 → 16\).*out\.dense",
    ),
    "two kinds": ([{"self_attn": Mixing(*LLAMAS), "attention": Mixing("wq", "wk", "wv", "wo")}], "wq .*"),
    "widths that are not self-attention's": (
        [{"self_attn": Mixing(*LLAMAS[:3], width=12, o_proj=nn.Linear(16, 16))}],
        "q_proj",
    ),
    "called by no usual name": (
        [{"gaze": Mixing("mix", "settle"), "norm": nn.LayerNorm(WIDTH)}],
        r"No module is called attention.*linear maps: layers\.0\.gaze \(Mixing\) with mix \(16 → 16\), settle",
    ),
    "none": ([{"norm": nn.LayerNorm(WIDTH)}], "No module is called attention.*: none"),
}


@pytest.mark.parametrize(("layers", "shown"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_inferred_is_refused_with_what_there_is_and_how_to_register(layers, shown):
    model = Parrot(*(Layer(**parts) for parts in layers))
    before = [*model.state_dict()]
    with pytest.raises(ValueError, match=shown) as refused:
        get_peft_model(model, tiny_config())
    assert "no attention hook is registered for the model type 'parrot'" in str(refused.value)
    assert "deltamem.register_hook('parrot', deltamem.AttentionHook(" in str(refused.value)
    assert [*model.state_dict()] == before


def test_where_a_module_on_the_way_takes_no_keywords_the_memory_goes_without_them(caplog):
    with caplog.at_level(logging.WARNING):
        model = get_peft_model(Parrot(StrictLayer(self_attn=Mixing(*LLAMAS))), tiny_config())
    assert "keywords=False" in caplog.text
    state = model.new_memory()
    with model.memory(state):
        model(input_ids=random_tokens(1, 5))
    assert all(tensor.any() for tensor in state.tensors.values())


def test_a_model_that_keeps_the_keywords_to_itself_does_not_run_without_its_memory():
    model = get_peft_model(Parrot(Layer(self_attn=Mixing(*LLAMAS)), SilentLayer(self_attn=Mixing(*LLAMAS))), tiny_config())
    state = model.new_memory()
    with model.memory(state), pytest.raises(RuntimeError, match=r"did not reach 1 of 2 .*layers\.1\.self_attn.*keywords=False"):
        model(input_ids=random_tokens(1, 5))
    assert not any(tensor.any() for tensor in state.tensors.values())
    with model.disable_adapter():
        model(input_ids=random_tokens(1, 5))

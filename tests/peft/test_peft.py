"""What every PEFT user knows works here too."""

import copy
import math

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from safetensors.torch import load_file, save_file
from tiny import MODEL_TYPES, random_tokens, tiny_adapted, tiny_backbone, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

from deltamem import DeltaMemConfig

QWEN3_4B = {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
}


def logits(model, ids=None):
    with torch.no_grad():
        return model(input_ids=random_tokens(2, 12) if ids is None else ids).logits


@pytest.mark.parametrize(("config", "parameters"), [(DeltaMemConfig.tsw(), 4_866_336), (DeltaMemConfig.msw(), 19_465_344)])
def test_trainable_parameters_are_those_of_the_paper(config, parameters):
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **QWEN3_4B))
        model = get_peft_model(backbone, config)
    assert model.get_nb_trainable_parameters()[0] == parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_disabled_it_is_the_backbone_bit_for_bit(model_type, dtype):
    backbone = tiny_backbone(model_type, dtype=dtype)
    before = logits(backbone)
    model = tiny_adapted(backbone=backbone)
    assert not torch.equal(logits(model), before)  # the adapter does something
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    with model.memory(model.new_memory(2), write=False):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model.unload()), before)


def test_unloading_leaves_nothing_behind():
    backbone = tiny_backbone()
    modules, keys = [type(m) for m in backbone.modules()], [*backbone.state_dict()]
    unloaded = tiny_adapted(backbone=backbone).unload()
    assert [type(m) for m in unloaded.modules()] == modules
    assert [*unloaded.state_dict()] == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unloaded.modules())


def test_save_and_load(tmp_path):
    backbone = tiny_backbone()
    backbone.save_pretrained(tmp_path / "backbone")
    model = tiny_adapted(backbone=backbone)
    expected = logits(model)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "backbone"), tmp_path / "adapter")
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected)
    empty = PeftModel.from_pretrained(tiny_backbone(), tmp_path / "adapter", low_cpu_mem_usage=True)
    assert torch.equal(logits(empty), expected)


@pytest.mark.delta_rule
def test_several_adapters_one_active():
    model = tiny_adapted()
    first = logits(model)
    model.add_adapter("second", tiny_config(r=2))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert not torch.equal(logits(model), first)
    assert {tuple(t.shape) for t in model.new_memory(3).tensors.values()} == {(3, 1, 2, 2)}
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_two_active_adapters_are_refused():
    model = tiny_adapted()
    model.add_adapter("second", tiny_config())
    with pytest.raises(ValueError, match="one active adapter, got 2: default, second"):
        model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_with_the_reason(merge):
    with pytest.raises(NotImplementedError, match="depend on the memory"):
        getattr(tiny_adapted(), merge)()


def test_an_adapter_for_another_backbone_is_refused(tmp_path):
    tiny_adapted().save_pretrained(tmp_path)
    for other in (tiny_backbone("qwen3"), tiny_backbone(hidden_size=48), tiny_backbone(num_hidden_layers=3)):
        keys = [*other.state_dict()]
        with pytest.raises(ValueError, match="made for the backbone"):
            PeftModel.from_pretrained(other, tmp_path)
        assert [*other.state_dict()] == keys


def damaged(weights, damage):
    name = next(iter(weights))
    changed = dict(weights)
    if damage == "missing":
        del changed[name]
    elif damage == "unknown":
        changed[f"{name}.more"] = weights[name].clone()
    elif damage == "misshapen":
        changed[name] = weights[name][:1]
    elif damage == "of the backbone":
        changed["base_model.model.lm_head.weight"] = torch.zeros(61, 32)
    return changed


@pytest.mark.delta_rule
@pytest.mark.parametrize("damage", ["missing", "unknown", "misshapen", "of the backbone"])
def test_weights_that_are_not_the_adapters_are_refused(tmp_path, damage):
    tiny_adapted().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(damaged(load_file(file), damage), file)
    with pytest.raises(ValueError, match="not those of the adapter"):
        PeftModel.from_pretrained(tiny_backbone(), tmp_path)


@pytest.mark.delta_rule
@pytest.mark.parametrize("layers", [[1], 1])
def test_only_some_layers(layers):
    model = tiny_adapted(tiny_config(layers_to_transform=layers))
    assert not torch.equal(logits(model), logits(tiny_backbone()))
    assert [*model.new_memory().tensors] == ["model.layers.1.self_attn"]


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match="layers 0 to 1, not 999"):
        tiny_adapted(tiny_config(layers_to_transform=[0, 999]))


@pytest.mark.parametrize("init", ["base_slice", "zero", "random"])
def test_initialisation(init):
    model = tiny_adapted(tiny_config(init=init, r=4))
    layer = model.base_model.model.model.layers[0].self_attn
    correction = layer.delta_mem_q["default"].weight
    if init == "zero":
        assert not correction.any()
    elif init == "base_slice":
        source = layer.base_layer.q_proj.weight[:, :4]
        torch.testing.assert_close(correction, 0.05 * source / source.norm(dim=0))
    else:
        assert correction.std() > 0.1


@pytest.mark.delta_rule
def test_tied_queries_start_equal_to_keys():
    layer = tiny_adapted(tiny_config(tie_query_init=True)).base_model.model.model.layers[0].self_attn
    queries, keys = layer.delta_mem_in["default"].weight[:8].chunk(2)
    assert torch.equal(queries, keys)


def test_the_adapter_stays_float32_on_a_bfloat16_backbone():
    model = tiny_adapted(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_it_goes_on_a_backbone_with_a_lora():
    backbone = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), tiny_backbone())
    torch.testing.assert_close(logits(tiny_adapted(backbone=backbone)), logits(tiny_adapted()))


def test_a_copy_after_use_is_independent():
    model = tiny_adapted()
    state = model.new_memory(2)
    with model.memory(state):
        expected = logits(model)
    twin = copy.deepcopy(model)
    twin_state = twin.new_memory(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with twin.memory(twin_state):
        assert torch.equal(logits(twin), expected)
    assert all(torch.equal(twin_state.tensors[name], state.tensors[name]) for name in state.tensors)


def test_saved_weights_are_the_adapters_own():
    names = get_peft_model_state_dict(tiny_adapted())
    assert names
    assert all(".delta_mem_" in name and "base_layer" not in name for name in names)


def test_a_refused_load_leaves_the_models_outputs(tmp_path):
    """peft attaches the layers before it reads their weights; without these they have no effect."""
    tiny_adapted().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: weight * math.nan for name, weight in weights.items()}, tmp_path / "adapter_model.safetensors")
    backbone, ids = tiny_backbone(), random_tokens(1, 9)
    with torch.no_grad():
        before = backbone(input_ids=ids).logits
        with pytest.raises(ValueError, match="NaN"):
            PeftModel.from_pretrained(backbone, tmp_path)
        assert torch.equal(backbone(input_ids=ids).logits, before)


def rounded_to_4_bits(weight):
    """The way of block-wise quantisation: 16 levels for every 8 numbers, up to their largest."""
    blocks = weight.unflatten(1, (-1, 8))
    step = blocks.abs().amax(2, keepdim=True) / 7
    return ((blocks / step).round() * step).flatten(1)


@pytest.mark.parametrize(("change", "accepted"), [(rounded_to_4_bits, True), (lambda weight: weight.flip(0), False)])
def test_an_adapter_knows_its_backbone_again(tmp_path, change, accepted):
    tiny_adapted().save_pretrained(tmp_path)
    backbone = tiny_backbone()
    embedding = backbone.get_input_embeddings().weight
    embedding.data = change(embedding.data)
    if accepted:
        PeftModel.from_pretrained(backbone, tmp_path)
    else:
        with pytest.raises(ValueError, match="made for other weights"):
            PeftModel.from_pretrained(backbone, tmp_path)

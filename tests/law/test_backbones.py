"""Every kind of backbone: half precision, quantised, partly on the disk, made without weights, with another PEFT method.

Where weights are quantised or adapted by another method, what sets families apart is where their projections lie: each in a
module of its own (Llama), or packed into one, piece by piece (Phi 3) or head by head (GPT-NeoX).
"""

import copy
import functools
import itertools

import pytest
import torch
from accelerate import dispatch_model, init_empty_weights
from accelerate.utils.modeling import get_state_dict_offloaded_model
from nightly import by_day
from oracle import GREEDY, TOLERANCE, adapted, error, left_padded, logits_of, replay, told
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from tiny import FAMILIES, random_tokens, tiny_adapted, tiny_backbone, tiny_config
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from deltamem import DeltaMemConfig
from deltamem.layer import DeltaMemLayer

PROJECTIONS = ("llama", "phi3", "gpt_neox")
HALF = (torch.bfloat16, torch.float16)
ROWS = (random_tokens(1, 5, seed=5)[0], random_tokens(1, 9, seed=9)[0])


def tolerance_for(dtype):
    """In half precision another order of summing moves numbers by their last place; those around 1, by this much."""
    return TOLERANCE if dtype == torch.float32 else torch.finfo(dtype).eps


def generate(model, rows=ROWS, **options):
    """What was generated, and the memory after it."""
    state = model.new_memory(len(rows))
    with model.memory(state):
        tokens = model.generate(**left_padded(*rows), **{**GREEDY, **options})
    return tokens[:, -GREEDY["max_new_tokens"] :], state


def check_passes(model, tolerance=TOLERANCE):
    """Hold one pass over a left-padded batch to the law."""
    state, unmasked, batch = model.new_memory(2), model.new_memory(2), left_padded(*ROWS)
    with torch.no_grad(), model.memory(state):
        logits = model(**batch).logits
    with torch.no_grad(), model.memory(unmasked):
        model(input_ids=batch["input_ids"])
    assert state.tokens == [len(row) for row in ROWS]
    assert all(tensor.dtype == torch.float32 for tensor in state.tensors.values())
    for row, tokens in enumerate(ROWS):
        assert error(state[row], replay(model, tokens)) <= tolerance
        assert (logits[row, -len(tokens) :] - logits_of(model, tokens)).abs().max() <= tolerance
    # The controls: padding that counts, and a memory that was told something, are more than this tolerance lets pass.
    assert error(unmasked[0], replay(model, ROWS[0])) > 1.5 * tolerance
    assert (logits_of(model, ROWS[0], told(model)) - logits_of(model, ROWS[0])).abs().max() > 4 * tolerance


def check_generation(model, tolerance=TOLERANCE):
    """Hold a generation from a left-padded batch to the law, with and without a cache."""
    tokens, state = generate(model)
    again, without_cache = generate(model, use_cache=False)
    assert torch.equal(tokens, again)
    assert error(state, without_cache) <= tolerance
    for row, prompt in enumerate(ROWS):
        alone, _ = generate(model, [prompt])
        assert torch.equal(tokens[row], alone[0])
        assert error(state[row], replay(model, torch.cat([prompt, alone[0, :-1]]))) <= tolerance


def outcome(model):
    """What a model makes of a text: logits, memory, the logits of a question read from it, generated tokens."""
    state, logits = model.new_memory(2), []
    with torch.no_grad(), model.memory(state):
        logits.append(model(input_ids=random_tokens(2, 12)).logits)
    with torch.no_grad(), model.memory(state, write=False):
        logits.append(model(input_ids=random_tokens(2, 6, seed=1)).logits)
    tokens, after = generate(model)
    return {
        **state.tensors,
        **{f"after {n}": t for n, t in after.tensors.items()},
        "logits": torch.cat(logits, 1),
        "ids": tokens,
    }


def check_same(first, second):
    """Make sure that two models make the same of a text, bit for bit, and take each other's memories."""
    one, other = outcome(first), outcome(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert first.base_model.fingerprint() == second.base_model.fingerprint()


def logits_for(model):
    with torch.no_grad():
        return model(input_ids=random_tokens(2, 8)).logits


def gradients(model):
    """The adapter's, through a write and a read; nothing else may get any."""
    state = model.new_memory()
    with model.memory(state, detach=False):
        model(input_ids=random_tokens(1, 8))
    with model.memory(state, write=False):
        model(input_ids=random_tokens(1, 4, seed=5)).logits.float().pow(2).sum().backward()
    adapter = {name: p for name, p in model.named_parameters() if ".delta_mem_" in name}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == adapter.keys()
    assert all(p.dtype == torch.float32 for p in adapter.values())
    return torch.cat([p.grad.flatten() for p in adapter.values()])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved tiny backbones: a folder by family and sizes."""

    @functools.cache
    def folder(model_type, **sizes):
        path = tmp_path_factory.mktemp(model_type)
        tiny_backbone(model_type, **sizes).save_pretrained(path)
        return path

    return folder


# ------------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_half_precision(model_type, dtype):
    model = adapted(model_type, "sdpa", dtype=dtype)
    check_passes(model, tolerance_for(dtype))
    check_generation(model, tolerance_for(dtype))
    state = replay(model, ROWS[1])  # float32 in more than name: it holds what the model's dtype cannot
    assert all(not torch.equal(tensor, tensor.to(dtype).float()) for tensor in state.tensors.values())


@pytest.mark.parametrize("dtype", HALF)
def test_a_cast_of_the_model_between_two_passes(dtype):
    """A memory that is taken for a buffer of the model would be rounded with it, or begun anew."""
    model, stayed, more = adapted(), adapted(), random_tokens(1, 2, seed=2)
    state = replay(model, ROWS[0])
    before = state.clone()
    model.to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.no_grad(), model.memory(state, write=False):
        model(input_ids=more)
    assert error(state, before) == 0
    with torch.no_grad(), model.memory(state):
        model(input_ids=more)
    assert state.tokens == [len(ROWS[0]) + 2]
    assert all(tensor.dtype == torch.float32 for tensor in state.tensors.values())
    assert error(state, replay(stayed, more[0], before)) <= tolerance_for(dtype)
    assert error(state, replay(stayed, more[0])) > 4 * tolerance_for(dtype)  # the control: a memory begun anew


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False}], ids=str)
@pytest.mark.parametrize("dtype", HALF)
def test_an_adapter_is_not_rounded_when_it_is_loaded(dtype, options, tmp_path):
    """It would be another adapter then, which refuses the memories of the one that was saved."""
    model = adapted(dtype=dtype)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_backbone(attn="eager", dtype=dtype), tmp_path, **options)
    check_same(loaded, model)
    with torch.no_grad(), loaded.memory(told(model)):
        loaded(input_ids=ROWS[0][None])


# ------------------------------------------------------------------------------------------------------------ quantised


class Packed(nn.Module):
    """A linear layer as quantisers leave it: eight bits a weight, scales, and nothing that has the shape of a weight."""

    def __init__(self, linear, kind):
        super().__init__()
        self.in_features, self.out_features, self.bias, self.kind = linear.in_features, linear.out_features, linear.bias, kind
        scales = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        numbers = (linear.weight.detach() / scales).round()
        self.register_buffer("scales", scales)
        if kind == "uint8 weight":  # bitsandbytes
            self.weight = nn.Parameter((numbers + 128).to(torch.uint8).view(-1, 1), requires_grad=False)
        elif kind == "int32 qweight":  # GPTQ
            self.register_buffer("qweight", numbers.to(torch.int8).view(torch.int32).contiguous())
        else:
            self.weight = nn.Parameter(numbers.to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, hidden):
        if self.kind == "int32 qweight":
            numbers = self.qweight.view(torch.int8)
        else:
            numbers = self.weight.float() - 128 * (self.kind == "uint8 weight")
        return nn.functional.linear(hidden, numbers.reshape(self.out_features, -1).float() * self.scales, self.bias)


def packed_backbone(model_type, kind):
    model = tiny_backbone(model_type, "eager")
    for name, attention in list(model.named_modules()):
        if name.endswith((".self_attn", ".attention")):
            for child, module in list(attention.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(attention, child, Packed(module, kind))
    return model


PACKED = [
    *[("llama", kind) for kind in ("uint8 weight", "int32 qweight", "float8_e4m3fn weight")],
    ("phi3", "uint8 weight"),
    ("gpt_neox", "uint8 weight"),
]


@pytest.mark.parametrize(("model_type", "kind"), PACKED)
def test_packed_layers(model_type, kind):
    backbone = packed_backbone(model_type, kind)
    bare = logits_for(backbone)
    model = adapted(backbone=backbone)
    check_passes(model)
    check_generation(model)
    with model.disable_adapter():
        assert torch.equal(logits_for(model), bare)
    plain = gradients(adapted(model_type))
    assert nn.functional.cosine_similarity(gradients(model), plain, dim=0) > 0.99


@pytest.mark.parametrize(("model_type", "kind"), PACKED)
def test_a_base_slice_of_packed_layers_is_refused_and_leaves_nothing(model_type, kind):
    """A slice of packed numbers is noise. Hooks that the attempt left behind would add theirs to the next adapter's."""
    backbone = packed_backbone(model_type, kind)
    bare, keys = logits_for(backbone), [*backbone.state_dict()]
    with pytest.raises(ValueError, match=rf"init='base_slice'.*quantised \(torch\.{kind.split()[0]}\).*init='zero'"):
        get_peft_model(backbone, DeltaMemConfig())
    assert [*backbone.state_dict()] == keys
    model = tiny_adapted(tiny_config(init="zero"), backbone=backbone)
    assert torch.equal(logits_for(model), bare)


BITS = {"8 bits": {"load_in_8bit": True}, "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
# What the 4-bit kernels of some CPUs need: blocks of 64 weights.
SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}


@pytest.fixture
def quantised(saved):
    """Backbones quantised by bitsandbytes."""
    pytest.importorskip("bitsandbytes")

    def load(model_type, bits, dtype=torch.float32):
        config = BitsAndBytesConfig(**BITS[bits], bnb_4bit_compute_dtype=dtype)
        options = {"quantization_config": config, "dtype": dtype, "device_map": {"": "cpu"}, "attn_implementation": "eager"}
        return AutoModelForCausalLM.from_pretrained(saved(model_type, **SIZES), **options).eval()

    return load


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("model_type", "dtype"), [("llama", torch.float32), *[(model_type, torch.bfloat16) for model_type in PROJECTIONS]]
)
def test_bitsandbytes(model_type, bits, dtype, quantised):
    backbone = quantised(model_type, bits, dtype)
    bare = logits_for(backbone)
    assert not torch.allclose(bare, logits_for(tiny_backbone(model_type, "eager", dtype=dtype, **SIZES)), atol=1e-4)
    model = adapted(backbone=backbone)
    check_passes(model, tolerance_for(dtype))
    check_generation(model, tolerance_for(dtype))
    with model.disable_adapter():
        assert torch.equal(logits_for(model), bare)
    with model.memory(model.new_memory(2), write=False):
        assert torch.equal(logits_for(model), bare)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("model_type", PROJECTIONS)
def test_training_on_bitsandbytes(model_type, bits, quantised):
    """On a backbone that was just loaded: after a pass in eval mode some CPUs' 4-bit kernels pass no gradients on."""
    with pytest.raises(ValueError, match=r"init='base_slice'.*quantised"):
        get_peft_model(quantised(model_type, bits), DeltaMemConfig())
    zero = get_peft_model(quantised(model_type, bits), DeltaMemConfig(init="zero"))
    assert torch.equal(logits_for(zero), logits_for(quantised(model_type, bits)))
    plain = gradients(adapted(model_type, **SIZES))
    found = gradients(adapted(backbone=quantised(model_type, bits)).train())
    assert nn.functional.cosine_similarity(found, plain, dim=0) > 0.95


# --------------------------------------------------------------------------------------------------- partly on the disk


def on_disk(model, prefix=""):
    """A device map that puts the second decoder layer on the disk."""
    inner = model.base_model_prefix
    names = [name for name, _ in model.named_children() if name != inner]
    names += [f"{inner}.{name}" for name, _ in getattr(model, inner).named_children() if name != "layers"]
    return {prefix + name: "cpu" for name in [*names, f"{inner}.layers.0"]} | {f"{prefix}{inner}.layers.1": "disk"}


def loaded_on_disk(model_type, saved, tmp_path):
    options = {
        "device_map": on_disk(tiny_backbone(model_type)),
        "offload_folder": tmp_path / "offloaded",
        "dtype": torch.float32,
    }
    return AutoModelForCausalLM.from_pretrained(saved(model_type), **options).eval()


def attached_after(model_type, saved, tmp_path, **options):
    return adapted(backbone=loaded_on_disk(model_type, saved, tmp_path), **options)


def attached_before(model_type, saved, tmp_path, **options):
    model = adapted(model_type, "sdpa", **options)
    backbone = model.get_base_model()
    dispatch_model(backbone, on_disk(backbone), main_device="cpu", offload_dir=tmp_path / "offloaded")
    return model


def dispatched_whole(model_type, saved, tmp_path, **options):
    model = adapted(model_type, "sdpa", **options)
    device_map = on_disk(model.get_base_model(), prefix="base_model.model.")
    return dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path / "offloaded")


def attached_between(model_type, saved, tmp_path, **options):
    """Accelerate replaces what it put on a module before; it must not take the memory's layer for the attention inside."""
    backbone = tiny_backbone(model_type)
    dispatch_model(backbone, {"": "cpu"}, main_device="cpu", force_hooks=True)
    device_map, first = on_disk(backbone), f"{backbone.base_model_prefix}.layers.0"
    del device_map[first]
    device_map |= {f"{first}.{name}": "cpu" for name, _ in backbone.get_submodule(first).named_children()}
    model = adapted(backbone=backbone, **options)
    dispatch_model(backbone, device_map, main_device="cpu", offload_dir=tmp_path / "offloaded")
    return model


ORDERS = [attached_after, attached_before, dispatched_whole, attached_between]


def offloaded(model):
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


@pytest.mark.parametrize(
    ("model_type", "order"),
    by_day(
        [*(("llama", order) for order in ORDERS), *((family, attached_between) for family in FAMILIES[1:])],
        [*itertools.product(FAMILIES, ORDERS)],
    ),
)
def test_a_layer_on_the_disk(model_type, order, saved, tmp_path):
    model = order(model_type, saved, tmp_path)
    second = {name for name, _ in model.named_parameters() if ".layers.1." in name}
    kept = {name for name in second if ".delta_mem_" in name} if order is attached_after else set()
    assert offloaded(model) == second - kept
    check_same(model, adapted(model_type, "sdpa"))
    check_passes(model)
    assert offloaded(model) == second - kept


@pytest.mark.parametrize("order", ORDERS)
def test_segments_and_learned_decay_with_a_layer_on_the_disk(order, saved, tmp_path):
    """Every weight of the adapter is fetched, also those that only some adapters have."""
    options = {"config": tiny_config(write="message", decay="learned", corrections=("q", "k", "v", "o"))}
    states = []
    for model in (order("llama", saved, tmp_path, **options), adapted("llama", "sdpa", **copy.deepcopy(options))):
        states.append(model.new_memory())
        with torch.no_grad(), model.memory(states[-1], segment_ids=torch.tensor([[0, 0, 0, 1, 1]])):
            model(input_ids=ROWS[0][None])
    assert error(*states) == 0
    assert states[0].tensors["model.layers.1.self_attn"].abs().max() > 0.01


@pytest.mark.parametrize("model_type", PROJECTIONS)
def test_a_base_slice_of_a_layer_on_the_disk(model_type, saved, tmp_path):
    config = {"config": tiny_config(init="base_slice")}
    model = attached_after(model_type, saved, tmp_path, **config)
    check_same(model, adapted(model_type, "sdpa", **copy.deepcopy(config)))
    layers = [module for module in model.modules() if isinstance(module, DeltaMemLayer)]
    assert all(layer.delta_mem_q["default"].weight.any() for layer in layers)


@pytest.mark.parametrize("order", ORDERS[:3])
def test_saving_with_a_layer_on_the_disk(order, saved, tmp_path):
    model = order("llama", saved, tmp_path)
    # Where the adapter itself is on the disk, its weights are asked of accelerate, as for every PEFT method.
    state_dict = None if order is attached_after else get_state_dict_offloaded_model(model)
    model.save_pretrained(tmp_path / "adapter", state_dict=state_dict)
    check_same(PeftModel.from_pretrained(tiny_backbone(), tmp_path / "adapter"), adapted("llama", "sdpa"))


@pytest.mark.parametrize("model_type", PROJECTIONS)
def test_loading_with_a_layer_on_the_disk(model_type, saved, tmp_path):
    expected = adapted(model_type, "sdpa")
    expected.save_pretrained(tmp_path / "adapter")
    model = get_peft_model(loaded_on_disk(model_type, saved, tmp_path), PeftConfig.from_pretrained(tmp_path / "adapter"))
    set_peft_model_state_dict(model, load_peft_weights(tmp_path / "adapter"))
    check_same(model.eval(), expected)
    # The same with the adapter on the disk, too: PeftModel.from_pretrained dispatches what it has put together.
    backbone = dispatch_model(tiny_backbone(model_type), {"": "cpu"}, force_hooks=True)
    options = {"device_map": on_disk(backbone, prefix="base_model.model."), "offload_dir": tmp_path / "adapter_offloaded"}
    model = PeftModel.from_pretrained(backbone, tmp_path / "adapter", **options)
    assert any(".delta_mem_in." in name for name in offloaded(model))
    check_same(model, expected)


@pytest.mark.xfail(
    strict=True, raises=KeyError, reason="peft looks for the projections where they were before a module was wrapped"
)
def test_from_pretrained_with_a_layer_on_the_disk(saved, tmp_path):
    adapted("llama", "sdpa").save_pretrained(tmp_path / "adapter")
    PeftModel.from_pretrained(loaded_on_disk("llama", saved, tmp_path), tmp_path / "adapter", offload_dir=tmp_path / "again")


# -------------------------------------------------------------------------------------------------------- without weights


@pytest.mark.parametrize(
    ("model_type", "init"),
    by_day(
        [("llama", "random"), *((family, "base_slice") for family in FAMILIES)],
        [*itertools.product(FAMILIES, ["base_slice", "random"])],
    ),
)
def test_made_without_weights(model_type, init):
    """What an adapter would cost is counted without a number being computed; later the model comes to be."""
    expected = adapted(model_type, config=tiny_config(init=init))
    with torch.device("meta"):
        model = tiny_adapted(tiny_config(init=init), model_type=model_type, attn="eager")
    assert model.get_nb_trainable_parameters() == expected.get_nb_trainable_parameters()
    tensors = [*model.parameters(), *model.buffers(), *model.new_memory(2).tensors.values()]
    with torch.no_grad(), model.memory(model.new_memory(2), write=False):
        tensors.append(model(input_ids=random_tokens(2, 8).to("meta")).logits)
    assert all(tensor.is_meta for tensor in tensors)

    model.to_empty(device="cpu")
    for name, buffer in expected.named_buffers():  # the tables of positions, which no file has
        model.get_buffer(name).copy_(buffer)
    model.load_state_dict(expected.state_dict())
    check_same(model, expected)
    check_passes(model)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_weights_assigned_to_a_model_made_without(model_type, tmp_path):
    """Assigned weights are other parameters than those that the layer was made with."""
    expected = adapted(model_type)
    expected.save_pretrained(tmp_path)
    with init_empty_weights():
        backbone = tiny_backbone(model_type, "eager")
    model = PeftModel.from_pretrained(backbone, tmp_path, low_cpu_mem_usage=True)
    model.load_state_dict(expected.state_dict(), assign=True)
    check_same(model, expected)
    check_generation(model)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_loading_with_little_memory(model_type, tmp_path):
    expected = adapted(model_type)
    expected.save_pretrained(tmp_path)
    check_same(PeftModel.from_pretrained(tiny_backbone(model_type, "eager"), tmp_path, low_cpu_mem_usage=True), expected)


def test_an_adapter_on_a_backbone_without_weights():
    """The adapter itself is made with weights, which follow the backbone; there are no columns to take a slice of."""
    with torch.device("meta"):
        backbone = tiny_backbone()
    assert all(parameter.is_meta for parameter in get_peft_model(backbone, DeltaMemConfig()).parameters())


# ------------------------------------------------------------------------------------------- with another PEFT method

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

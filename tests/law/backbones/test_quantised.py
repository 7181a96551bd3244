"""A quantised backbone."""

import pytest
import torch
from backbone_checks import PROJECTIONS, check_generation, check_passes, gradients, logits_for, tolerance_for
from oracle import adapted
from peft import (
    get_peft_model,
)
from tiny import tiny_adapted, tiny_backbone, tiny_config
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from deltamem import DeltaMemConfig


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

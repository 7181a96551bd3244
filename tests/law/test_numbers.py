"""Precision: float32 from the gate's logit on, selection instead of multiplication by a mask, nothing that is not finite."""

import math

import pytest
import torch
from einops import rearrange
from nightly import by_day
from oracle import TOLERANCE, adapted, error, replay, told
from tiny import FAMILIES, random_tokens, tiny_adapted, tiny_backbone, tiny_config

from deltamem.forward.memory_pass import MemoryPass
from deltamem.layer import DeltaMemLayer
from deltamem.memory.snapshot import Snapshot
from deltamem.rule.reference import reference_delta_rule

LONG, RANK = 32_768, 8
BETAS = (0.18, 0.02, 0.002, 0.0005)


def long_layer(dtype):
    """An attention module with four states, each with a write gate of its own size, in a model of half precision."""
    config = tiny_config(num_states=len(BETAS), r=RANK, rowwise_gates=False)
    model = tiny_adapted(config, backbone=tiny_backbone(dtype=dtype)).to(dtype)
    layer = next(module for module in model.modules() if isinstance(module, DeltaMemLayer))
    with torch.no_grad():
        layer.delta_mem_in["default"].weight[3 * len(BETAS) * RANK :].normal_(std=0.01)
        layer.delta_mem_gate_bias["default"].copy_(torch.tensor([math.log(beta / (1 - beta)) for beta in BETAS]))
    return layer


@torch.no_grad()
def in_double(layer, hidden, gates=torch.float64):
    """The rule in float64 from the same projections; the gates in a precision of choice from their logits on."""
    weight, bias = layer.delta_mem_in["default"].weight, layer.delta_mem_gate_bias["default"]
    projected = torch.nn.functional.linear(hidden, weight)
    rows = len(BETAS) * RANK
    q, k, v = (
        rearrange(part.double(), "b t (n r) -> b n t r", n=len(BETAS))
        for part in projected[..., : 3 * rows].split(rows, dim=-1)
    )
    q, k = (torch.nn.functional.normalize(x.tanh(), dim=-1, eps=1e-6) for x in (q, k))
    beta = torch.sigmoid(projected[..., 3 * rows :].to(gates) + bias.to(gates))
    keep, beta = ((rearrange(g, "b t n -> b n t 1").expand_as(v)).double() for g in (1 - beta, beta))
    return reference_delta_rule(q, k, v, keep, beta, beta, q.new_zeros(1, len(BETAS), RANK, RANK))[1]


def pass_of(tokens, valid=None):
    """A pass of one row that starts from an empty memory."""
    return MemoryPass(
        owner=None,
        adapter="default",
        start=Snapshot.empty(1, torch.device("cpu")),
        valid=valid,
        read=True,
        write=True,
        segments=None,
        batch=1,
        tokens=tokens,
        linked=False,
        scope=None,
        cache=None,
    )


def relative_errors(state, expected):
    return ((state.double() - expected).flatten(2).norm(dim=2) / expected.flatten(2).norm(dim=2))[0]


@pytest.mark.parametrize("dtype", by_day([torch.bfloat16], [torch.bfloat16, torch.float16]))
def test_a_long_text_in_half_precision(dtype):
    layer = long_layer(dtype)
    hidden = torch.randn(1, LONG, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    memory = pass_of(LONG)
    with torch.no_grad():
        memory.read_and_write(layer, hidden)
    state, expected = memory.end[layer.name]["state"], in_double(layer, hidden)
    assert state.dtype == torch.float32
    assert relative_errors(state, expected).max() < 1e-3
    if dtype == torch.bfloat16:  # the control: gates in the model's precision, where 1 - 0.0005 is 1
        assert relative_errors(in_double(layer, hidden, gates=dtype), expected).max() > 0.3


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_same_call_gives_the_same_bits(model_type):
    model, ids = adapted(model_type), random_tokens(2, 9)
    states = [told(model, rows=2) for _ in range(2)]
    with torch.no_grad():
        logits = []
        for state in states:
            with model.memory(state):
                logits.append(model(input_ids=ids, use_cache=False).logits)
    assert torch.equal(*logits)
    assert error(*states) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_stands_in_the_padding_reaches_nothing(model_type, bad):
    """In one layer, as transformers' own attention multiplies by the mask, and passes NaN on to the next."""
    special = {"layer_types": ["full_attention"]} if model_type == "gemma3_text" else {}
    model = adapted(model_type, num_hidden_layers=1, **special)
    ids, mask = random_tokens(1, 6), torch.tensor([[0, 0, 1, 1, 1, 1]])
    embeddings = model.get_input_embeddings()(ids).detach()
    embeddings[0, :2] = bad
    layer = next(module for module in model.modules() if isinstance(module, DeltaMemLayer))
    hidden = []
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: hidden.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]),
        with_kwargs=True,
    )
    if model_type == "falcon_h1":  # its mixer takes the padding in before our attention is asked; look at the layer alone
        hidden.append(embeddings)
    else:
        with torch.no_grad():
            model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
    assert not hidden[0].isfinite().all()  # the control: it does reach the layer
    memory, alone = pass_of(6, mask.bool()), pass_of(4)
    with torch.no_grad():
        reads = memory.read_and_write(layer, hidden[0]).reads
        alone.read_and_write(layer, hidden[0][:, 2:])
    assert reads.isfinite().all()
    assert not reads[:, :2].any()
    assert torch.allclose(memory.end[layer.name]["state"], alone.end[layer.name]["state"], atol=TOLERANCE)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_memory_that_turns_bad_is_not_kept(model_type, bad):
    model = adapted(model_type)
    state = told(model)
    before, fingerprint = state.snapshot, state.fingerprint
    embeddings = model.get_input_embeddings()(random_tokens(1, 5)).detach()
    embeddings[0, 2] = bad
    first = next(iter(state.tensors))
    with pytest.raises(FloatingPointError, match=f"the memory of {first} became NaN or infinite"), torch.no_grad():
        with model.memory(state):
            model(input_ids=random_tokens(1, 5), use_cache=False)
            model(inputs_embeds=embeddings, use_cache=False)
    assert state.snapshot is before
    assert state.fingerprint == fingerprint
    ids = random_tokens(1, 5)
    assert error(replay(model, ids[0], state), replay(model, ids[0], told(model))) == 0  # and it can be gone on with

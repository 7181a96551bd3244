"""A model family as a case of the contract: how to make it small, and what transformers itself cannot do with it."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from tiny import randomise_gates, tiny_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

VOCAB, PAD = 61, 0
LAYERS = 2

# Whatever a configuration calls them.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("intermediate_size", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim"), 48),
    "moe_intermediate_size": 16,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "vocab_size": VOCAB,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 256),
    "sliding_window": 8,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # large enough for the layers to matter
}

# What a family's checks are called where transformers cannot do one of them; see test_contract.py.
CHECKS = ("cached decoding", "left padding", "eager and sdpa", "beam search", "activation checkpointing", "bfloat16")
Unpack = Callable[[Tensor, Any], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Family:
    """One case.

    Args:
        options: of the configuration, beside `SMALL`; nested mappings for nested configurations.
        attention: how many layers of the small model have attention.
        lacks: for each of `CHECKS` that the bare model fails, what transformers does wrong; shown on the bare model.
        unpack: for each role in a packed projection, a function of its output `[batch, tokens, width]` and the configuration
            that gives a view of every part, as the family's own code takes the output apart.
        without: projections that cannot be corrected, as all layers' keys and values are somebody else's, or none.
        auto: transformers' class that makes the model.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    attention: int = LAYERS
    lacks: Mapping[str, str] = field(default_factory=dict)
    unpack: Mapping[str, Unpack] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    auto: Any = AutoModelForCausalLM


def tiny_config_of(model_type: str, options: Mapping[str, Any]) -> PreTrainedConfig:
    """A small configuration of a model type, without dropout. What follows a colon names a variant."""
    config = AutoConfig.for_model(model_type.partition(":")[0])
    _shrink(config)
    _update(config, options)
    return type(config).from_dict(config.to_dict())


def bare(model_type: str, family: Family, attn: str = "eager", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random model of a family in eval mode; the same weights each time."""
    return _written_down(model_type, family, attn).copy().to(dtype)


class _WrittenDown(pickle.Pickler):
    """A model of which copies are made as copy.deepcopy would make them, in a quarter of the time: all but tensors in C."""

    def __init__(self, model: nn.Module) -> None:
        self.file, self.tensors = io.BytesIO(), []
        super().__init__(self.file)
        self.dump(model)

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, Tensor):
            return None
        self.tensors.append(thing)
        return len(self.tensors) - 1

    def copy(self) -> nn.Module:
        return _Copied(self.file.getvalue(), self.tensors).load()


class _Copied(pickle.Unpickler):
    """Reads a model that was written down; what shares a tensor there shares its copy here."""

    def __init__(self, written: bytes, tensors: Sequence[Tensor]) -> None:
        super().__init__(io.BytesIO(written))
        self._tensors, self._copied = tensors, {}

    def persistent_load(self, index: int) -> Tensor:
        return copy.deepcopy(self._tensors[index], self._copied)


@functools.cache
def _written_down(model_type: str, family: Family, attn: str) -> _WrittenDown:
    return _WrittenDown(_made(model_type, family, attn))


def _made(model_type: str, family: Family, attn: str) -> nn.Module:
    config = tiny_config_of(model_type, family.options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family.auto.from_config(config, attn_implementation=attn)
        with torch.no_grad():
            for parameter in model.parameters():  # nothing at zero, which would hide what passes through it
                if not parameter.any() and parameter.is_floating_point():
                    parameter.normal_(std=0.1)
            model.get_input_embeddings().weight[PAD].normal_(std=0.2)
    model.generation_config.eos_token_id = None  # texts of equal length
    return model.eval()


def adapted(model: nn.Module, **options: Any) -> PeftModel:
    """A model with a random adapter that is felt, in eval mode; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(model, tiny_config(**options))
        randomise_gates(model)
    return model.eval()


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    """Token ids `[rows, length]`, none of them special."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def _shrink(config: Any) -> None:
    config.per_layer_config = None  # sizes that differ between the layers
    for name, value in SMALL.items():
        given = getattr(config, name, None)
        if given is not None and not isinstance(given, list) and not isinstance(getattr(type(config), name, None), property):
            setattr(config, name, value)
    for name, value in [*vars(config).items()]:
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif isinstance(value, float) and ("drop" in name or "pdrop" in name):
            setattr(config, name, 0.0)
    for name in ("layer_types", "mlp_layer_types"):
        if vars(config).get(name):
            kinds = [*dict.fromkeys(getattr(config, name))]  # one of each
            setattr(config, name, (kinds * LAYERS)[:LAYERS])


def _update(config: Any, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if isinstance(value, Mapping) and isinstance(getattr(config, name, None), PreTrainedConfig):
            _update(getattr(config, name), value)
        else:
            setattr(config, name, value)

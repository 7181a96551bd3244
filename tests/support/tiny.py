"""Tiny random models, made in milliseconds."""

import os
from importlib import import_module
from typing import Any

import torch
from nightly import by_day
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from deltamem import DeltaMemConfig
from deltamem.layer import DeltaMemLayer

# One of each kind of attention: plain, with norms of queries and keys, with sliding windows in all or some layers, packed in
# one piece, packed head by head, and beside a recurrent mixer.
EVERY_FAMILY = ("llama", "qwen3", "mistral", "gemma3_text", "phi3", "gpt_neox", "falcon_h1")
# By day, what differs for a cache or for our passes: none, windows, packed projections, a mixer. What the others change is in
# how their attention is corrected, which the contract checks of every type, by day too.
FAMILIES = by_day(("llama", "gemma3_text", "gpt_neox", "falcon_h1"), EVERY_FAMILY)
MODEL_TYPES = (*EVERY_FAMILY, "qwen2", "smollm3")
VOCAB, PAD = 61, 0
# The update rule of tiny adapters: `MEMORY_KIND=hebbian` runs whatever test uses them with that of `hebbian.py`.
KIND = os.environ.get("MEMORY_KIND", "delta")
if KIND != "delta":
    import_module(KIND)

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What makes a family differ from Llama must be there with two layers already.
SPECIAL: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "mistral": {"sliding_window": 8},
    "smollm3": {"no_rope_layer_interval": 2},
}


def tiny_backbone(
    model_type: str = "llama", attn: str = "sdpa", seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> nn.Module:
    """A random causal language model in eval mode; the same seed gives the same weights."""
    config = AutoConfig.for_model(model_type, **{**SIZES, **SPECIAL.get(model_type, {}), **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn, dtype=dtype)
        # The embedding of the padding is zero in a new model, which would hide padding that is not masked.
        model.get_input_embeddings().weight.data[PAD].normal_(std=config.initializer_range)
    return model.eval()


def tiny_config(**options: Any) -> DeltaMemConfig:
    """An adapter with a visible effect from the start."""
    return DeltaMemConfig(**{"task_type": "CAUSAL_LM", "init": "random", "beta_bias": 0.0, "r": 4, "kind": KIND, **options})


def tiny_adapted(
    config: DeltaMemConfig | None = None, *, backbone: nn.Module | None = None, seed: int = 0, **options: Any
) -> PeftModel:
    """A backbone with a random adapter, in eval mode.

    Args:
        config: the adapter, `tiny_config()` if not given.
        backbone: what it is attached to, `tiny_backbone(**options)` if not given.
        seed: of the adapter's weights, and of the backbone's.
        options: for `tiny_backbone`: `tiny_adapted(tiny_config(decay="learned"), model_type="qwen3", attn="eager")`.
    """
    backbone = backbone if backbone is not None else tiny_backbone(seed=seed, **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        model = get_peft_model(backbone, config or tiny_config())
        randomise_gates(model)
    return model.eval()


@torch.no_grad()
def randomise_gates(model: nn.Module) -> None:
    """Give the gates weights, which start at zero, so that they differ between tokens and rows."""
    for layer in (module for module in model.modules() if isinstance(module, DeltaMemLayer)):
        for name, linear in layer.delta_mem_in.items():
            options = layer.adapters[name].config
            linear.weight[3 * options.num_states * options.r :].normal_(std=0.1)


def random_tokens(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Token ids `[batch, tokens]`, none of them padding."""
    return torch.randint(1, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))

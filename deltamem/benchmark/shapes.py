"""Backbones to time: well-known shapes with random weights, which need no download, or real models."""

from __future__ import annotations

import difflib
import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deltamem.backbones import load_backbone

# A model's speed depends on its shape alone. The numbers are from the models' own config.json.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "llama3-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": True,
    },
}


def check_model_name(name: str) -> None:
    """Check that a model name can be valid, before anything is loaded.

    Raises:
        ValueError: it is not a shape, a folder or a Hub name.
    """
    if name in SHAPES or os.path.isdir(name) or "/" in name:
        return
    close = difflib.get_close_matches(name, SHAPES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"--model {name!r} is no known shape and no folder.{hint} Give one of the shapes {', '.join(SHAPES)}, a folder, or a "
        "Hub name (OWNER/NAME)"
    )


def make_backbone(name: str, device: torch.device, dtype: torch.dtype, most_tokens: int) -> PreTrainedModel:
    """Load a backbone in eval mode: a shape's name gives random weights, any other name a folder or a Hub model.

    Args:
        name: any name that `check_model_name` accepts.
        device: the device to put it on.
        dtype: the dtype of the weights.
        most_tokens: the longest text that it will read.

    Raises:
        ValueError: the model supports only shorter texts.
        OSError: the model does not exist.
    """
    if name not in SHAPES:
        model, _ = load_backbone(name, dtype)
        _check_length(model.config, most_tokens)
        return model.to(device)
    config = AutoConfig.for_model(**SHAPES[name])
    _check_length(config, most_tokens)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _check_length(config: Any, most_tokens: int) -> None:
    longest = config.max_position_embeddings
    if most_tokens > longest:
        raise ValueError(
            f"--prompt and --new-tokens together make a text of {most_tokens:,} tokens, but this model is made for {longest:,} "
            "at most; give fewer"
        )

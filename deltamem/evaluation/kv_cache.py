"""What a KV cache keeps, to compare a memory with."""

from __future__ import annotations

from typing import Any

import torch


def kv_numbers(config: Any) -> int:
    """How many numbers a KV cache keeps for one token: its key and its value in every layer.

    Args:
        config: of a transformers model.
    """
    text = config.get_text_config()
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * kv_heads * head_dim)


def tail_tokens(model: Any) -> int:
    """How many tokens' KV cache, in float32, takes as many bytes as a model's memory; at least one."""
    size: int = model.new_memory().nbytes
    return max(size // (torch.float32.itemsize * kv_numbers(model.config)), 1)

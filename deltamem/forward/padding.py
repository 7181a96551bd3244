"""Which tokens of a forward pass are real. Only this file reads attention masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltamem.versions import mask_sizes


def non_padding_mask(attention_mask: Any, tokens: int, cache: Any) -> Tensor | None:
    """Find the padding among the new tokens of a pass.

    Args:
        attention_mask: the model's argument: None (all real); `[batch, tokens so far]`, zero for padding; a 4-D mask, boolean
            or additive, in which a real token may attend to itself; or a dict of 4-D masks by attention type.
        tokens: number of new tokens.
        cache: the KV cache of the call, or None.

    Returns:
        `[batch, tokens]`, True for real tokens; None if every token is real.

    Raises:
        ValueError: the mask has an unknown form, or does not cover the new tokens.
    """
    if attention_mask is None:
        return None
    if isinstance(attention_mask, dict):
        return _valid_from_masks(attention_mask, tokens, cache)
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim not in (2, 4):
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else ""
        raise ValueError(
            f"cannot tell the padding from an attention mask of type {type(attention_mask).__name__} {shape}; give a mask "
            "[batch, tokens] with zeros for padding, or a 4-D one"
        )
    if attention_mask.ndim == 4:
        return _valid_from_diagonal(attention_mask, tokens, cache, layer=0)
    if attention_mask.shape[1] < tokens:
        raise ValueError(f"the attention mask covers {attention_mask.shape[1]} tokens, but the pass has {tokens} new ones")
    return attention_mask[:, -tokens:].bool()


def _valid_from_masks(masks: dict[str, Any], tokens: int, cache: Any) -> Tensor | None:
    """Models with several attention types take one mask for each. All masks agree on which tokens are real."""
    kind = "full_attention" if "full_attention" in masks else next(iter(masks))
    mask = masks[kind]
    if mask is None or mask.ndim == 2:
        return non_padding_mask(mask, tokens, cache)
    sliding = cache.is_sliding if cache is not None else []
    layer = sliding.index(True) if kind == "sliding_attention" and True in sliding else 0
    return _valid_from_diagonal(mask, tokens, cache, layer)


def _valid_from_diagonal(mask: Tensor, tokens: int, cache: Any, layer: int) -> Tensor:
    """Token i is real if it may attend to itself, which the mask says in the column of the token's position.

    A static cache is longer than its content, so this column is not among the last ones. It is the number of tokens seen, less
    those that a sliding cache has evicted.
    """
    past: int | Tensor = 0
    if cache is not None:
        past = cache.get_seq_length() - mask_sizes(cache, tokens, layer)[1]
    own = torch.arange(tokens, device=mask.device) + past  # [tokens]
    diagonal = mask[:, 0].gather(2, own[None, :, None].expand(mask.shape[0], tokens, 1)).squeeze(2)  # [batch, tokens]
    return diagonal if mask.dtype == torch.bool else diagonal == 0

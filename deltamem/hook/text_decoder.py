"""The text decoder of a transformers model, which may also have towers for images and sound."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# The names of the maximum context length in configurations.
LONGEST_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions")


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's text decoder; None for a model without one."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def longest_context(model: nn.Module) -> int | None:
    """The maximum context length of a model's text decoder, in tokens; None if its configuration does not say."""
    config = text_config(model)
    given = (getattr(config, name, None) for name in LONGEST_CONTEXT)
    return next((tokens for tokens in given if isinstance(tokens, int) and tokens > 0), None)


def decoder_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model's text decoder, by their names in the whole model."""
    inside = {id(module) for module in _decoder(model).modules()}
    return ((name, module) for name, module in model.named_modules() if id(module) in inside)


def may_skip_tokens(model: nn.Module) -> bool:
    """Whether a model's last layers may skip tokens if `logits_to_keep` is a count.

    Layers that share other layers' keys skip tokens whose logits are not requested, but their memories need these tokens. Given
    positions instead, `logits_to_keep=tensor`, such decoders compute all tokens.
    """
    return "logits_to_keep" in inspect.signature(_decoder(model).forward).parameters


def last_place(ids: Tensor) -> Tensor:
    """The position of the last token, `[1]`, to use as `logits_to_keep` if only its logits are needed, or none.

    The count 1 means the same, but gives a non-contiguous slice of the hidden states; with a frozen 16-bit head, torch then
    copies the whole vocabulary matrix for every row.

    Args:
        ids: the token ids of the pass, `[batch, tokens]`.
    """
    return torch.arange(ids.shape[1] - 1, ids.shape[1], dtype=torch.long, device=ids.device)


def _decoder(model: nn.Module) -> nn.Module:
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder: nn.Module = model if get_decoder is None else get_decoder()
    # In some models, the output layer is called the decoder.
    return model if next(decoder.children(), None) is None else decoder

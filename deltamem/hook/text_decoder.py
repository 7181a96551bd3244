"""The text decoder of a transformers model, which may have towers for images and sound beside it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# What configurations call the length of the longest context.
LONGEST_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions")


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's text decoder; None for a model without one."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def longest_context(model: nn.Module) -> int | None:
    """How many tokens a model's text decoder takes at once; None if its configuration does not say."""
    config = text_config(model)
    given = (getattr(config, name, None) for name in LONGEST_CONTEXT)
    return next((tokens for tokens in given if isinstance(tokens, int) and tokens > 0), None)


def decoder_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model's text decoder, by their names in the whole model."""
    inside = {id(module) for module in _decoder(model).modules()}
    return ((name, module) for name, module in model.named_modules() if id(module) in inside)


def may_skip_tokens(model: nn.Module) -> bool:
    """Whether a model's last layers may see only the last tokens, if it is told how many of them are asked for.

    Layers that share other layers' keys skip tokens whose logits are not asked for; their memories need them. Told the tokens
    themselves, `logits_to_keep=tensor`, the decoders that know this argument compute all.
    """
    return "logits_to_keep" in inspect.signature(_decoder(model).forward).parameters


def last_place(ids: Tensor) -> Tensor:
    """Where the last token stands, `[1]`: what to give as `logits_to_keep` when only its logits are of use, or none are.

    The number 1 means the same, but makes a slice of the hidden states that is not contiguous; with a frozen 16-bit head, torch
    then copies the whole vocabulary matrix for every row.

    Args:
        ids: of the pass, `[batch, tokens]`.
    """
    return torch.arange(ids.shape[1] - 1, ids.shape[1], dtype=torch.long, device=ids.device)


def _decoder(model: nn.Module) -> nn.Module:
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder: nn.Module = model if get_decoder is None else get_decoder()
    # Some models call their output layer the decoder.
    return model if next(decoder.children(), None) is None else decoder

"""The text decoder of a transformers model, which may have towers for images and sound beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's text decoder; None for a model without one."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def decoder_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model's text decoder, by their names in the whole model."""
    get_decoder: Any = getattr(model, "get_decoder", None)
    inside = {id(module) for module in (model if get_decoder is None else get_decoder()).modules()}
    return ((name, module) for name, module in model.named_modules() if id(module) in inside)

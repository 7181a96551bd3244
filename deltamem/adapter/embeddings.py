"""The backbone's embeddings in an adapter's file. peft saves them there on request, or if the vocabulary was resized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from deltamem.adapter.checks import shape_of_weight

SAVED_UNDER = "base_model.model."


def embeddings_in(file: Mapping[str, Tensor], model: Any) -> tuple[set[str], dict[str, Tensor]]:
    """Find the backbone's embeddings among the weights of an adapter's file, and those of them to load.

    Embeddings are loaded if the model's vocabulary was resized after the model was read from its checkpoint, which lacks the
    new tokens. Otherwise they are accepted only if they equal the model's, and nothing is loaded: an adapter's file must not
    change the backbone.

    Args:
        file: the weights by their names in the file.
        model: a PeftModel, or a transformers model into which the adapter was loaded.

    Returns:
        The names of the accepted embeddings, and the embeddings to load by their names in the file.

    Raises:
        ValueError: an embedding is not a dense tensor of finite floating-point numbers.
    """
    known = _embeddings(model)
    given = {name: known[own] for name in file for own in (name, name.removeprefix(SAVED_UNDER)) if own in known}
    fitting = {name: own for name, own in given.items() if shape_of_weight(name, file[name]) == own.shape}
    if fitting and _is_resized(model):
        return {*fitting}, {name: file[name].to(own.dtype) for name, own in fitting.items()}
    return {name for name, own in fitting.items() if _same(own, file[name])}, {}


def _embeddings(model: Any) -> dict[str, Tensor]:
    """The weights of the input and the output embeddings, by their names in the model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    getters = (getattr(base, f"get_{side}_embeddings", None) for side in ("input", "output"))
    found = [getter() for getter in getters if getter is not None]
    return {
        f"{name}.{key}": weight
        for name, module in model.named_modules()
        if any(module is embedding for embedding in found)
        for key, weight in module.named_parameters(recurse=False)
    }


def _is_resized(model: Any) -> bool:
    """Whether a model's vocabulary differs in size from its checkpoint's; False if the checkpoint is not on this machine.

    The checkpoint is the model's, not the one in the adapter's config: an untrusted file may name any.
    """
    config = model.config
    if not config.name_or_path:
        return False
    try:
        before = type(config).from_pretrained(config.name_or_path, local_files_only=True)
    except (OSError, ValueError):
        return False
    return bool(before.get_text_config().vocab_size != config.get_text_config().vocab_size)


def _same(own: Tensor, given: Tensor) -> bool:
    """Whether two tensors are equal in the less precise of their dtypes."""
    if own.is_meta:
        return False
    given = given.to(own.device)
    return torch.equal(own, given.to(own.dtype)) or torch.equal(own.to(given.dtype), given)

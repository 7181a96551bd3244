"""The backbone's embeddings in an adapter's file, where peft puts them if the vocabulary was resized or if it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from deltamem.adapter.checks import shape_of_weight

SAVED_UNDER = "base_model.model."


def embeddings_in(file: Mapping[str, Tensor], model: Any) -> tuple[set[str], dict[str, Tensor]]:
    """Find the backbone's embeddings among the weights of an adapter's file, and what is to be loaded of them.

    They are loaded if the vocabulary of the model was resized since it was read from its checkpoint, which does not have the
    new tokens. Otherwise only those are accepted that the model has already, and there is nothing to load: an adapter's file
    must not change the backbone.

    Args:
        file: the weights by their names in the file.
        model: a PeftModel, or a transformers model into which the adapter was loaded.

    Returns:
        The names of the embeddings that are accepted, and what is to be loaded by its name in the file.

    Raises:
        ValueError: an embedding that is not a dense tensor of finite floating-point numbers.
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
    """Whether a model's vocabulary has another size than in its checkpoint; False if there is none on this machine.

    The checkpoint is that of the model, not the one that the adapter's config names: a file from elsewhere may name any.
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
    """Whether two tensors are one in the less precise of their dtypes."""
    if own.is_meta:
        return False
    given = given.to(own.device)
    return torch.equal(own, given.to(own.dtype)) or torch.equal(own.to(given.dtype), given)

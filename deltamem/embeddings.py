"""The backbone's embeddings in an adapter's file, where peft puts them if the vocabulary was resized or if it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from deltamem.adapter_checks import shape_of_weight

SAVED_UNDER = "base_model.model."


def embeddings_in(file: Mapping[str, Tensor], model: Any) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Find the backbone's embeddings among the weights of an adapter's file, and what is to be loaded of them.

    They are loaded if the vocabulary of the model was resized since it was read from its checkpoint: that one does not have the
    new tokens. Otherwise they must be those that the model has, and there is nothing to load: an adapter's file must not change
    the backbone.

    Args:
        file: the weights by their names in the file.
        model: a PeftModel, or a transformers model into which the adapter was loaded.

    Returns:
        The names of the embeddings in the file, with their names in the model; and what is to be loaded, by the names in the
        file.

    Raises:
        ValueError: an embedding of another shape, other numbers where the vocabulary was not resized, or
            some that are no finite floating-point numbers.
    """
    known = _embeddings(model)
    names = {name: own for name in file for own in (name, name.removeprefix(SAVED_UNDER)) if own in known}
    resized = bool(names) and _is_resized(model)
    loaded: dict[str, Tensor] = {}
    for name, own_name in names.items():
        own, given = known[own_name], file[name]
        shape = shape_of_weight(name, given)
        if shape != own.shape:
            raise ValueError(
                f"the adapter's weight {name} has the shape {shape} in the file and {tuple(own.shape)} in the model; resize the "
                "model's vocabulary to that of the adapter before: model.resize_token_embeddings(TOKENS)"
            )
        if resized:
            loaded[name] = given.to(own.dtype)
        elif not _same(own, given):
            raise ValueError(
                f"the adapter's weight {name} is the backbone's, and has other numbers in the file than in the model, whose "
                "vocabulary was not resized since it was loaded: an adapter does not change its backbone. Load the backbone that "
                "the adapter was saved with, and resize its vocabulary if that was done before the training"
            )
    return names, loaded


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

"""Identifies the backbone for which an adapter was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.hook.text_decoder import text_config

IDENTITY_FIELDS = ("model_type", "hidden_size", "num_hidden_layers")
EMBEDDING = "embedding"
# How many numbers of the embedding an adapter stores, and their least accepted cosine similarity with the model's. Unrelated
# weights have a cosine of 0 ± 0.13 (1 / sqrt(64), one standard deviation); the same weights in 4 bits, 0.97 (SmolLM2-135M).
NUMBERS, LEAST_COSINE = 64, 0.8


def backbone_identity(model: Any) -> dict[str, Any]:
    """Describe a transformers model by its type, the sizes of its text decoder, and some numbers of its embedding."""
    text = text_config(model)
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return {
        "model_type": getattr(getattr(model, "config", None), "model_type", None),
        "hidden_size": getattr(text, "hidden_size", None),
        "num_hidden_layers": getattr(text, "num_hidden_layers", None),
        EMBEDDING: backbone_numbers(getattr(embedding, "weight", None)),
    }


def check_description(described: Any) -> None:
    """Check that a value has the form of `backbone_identity`'s result; an adapter's file may contain anything.

    Raises:
        ValueError: it has another form; the message says which.
    """
    accepted = (*IDENTITY_FIELDS, EMBEDDING)
    if not isinstance(described, Mapping) or not {*described} <= {*accepted}:
        raise ValueError(f"backbone={described!r:.80} is not accepted; give a mapping with {', '.join(accepted)}, or None")
    numbers = described.get(EMBEDDING)
    if numbers is not None and not (isinstance(numbers, list) and all(map(is_finite, numbers))):
        raise ValueError(
            f"backbone[{EMBEDDING!r}]={numbers!r:.80} is not accepted; give a list of finite float32 numbers, or None"
        )


def is_finite(value: Any) -> bool:
    """Whether a value is a number and finite in float32, the dtype of the memory."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= torch.finfo(torch.float32).max


def check_backbone(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare an adapter's backbone with a model, both as described by `backbone_identity`.

    Raises:
        ValueError: the model is of another kind, or has other weights.
    """
    kinds = [{name: described.get(name) for name in IDENTITY_FIELDS} for described in (expected, found)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"this adapter was made for the backbone {kinds[0]}, but the model is {kinds[1]}; load the backbone that it was "
            "trained on"
        )
    ours, theirs = expected.get(EMBEDDING), found.get(EMBEDDING)
    if ours is None or theirs is None:  # the weights were not loaded when the description was made
        return
    likeness = 0.0
    if len(ours) == len(theirs):
        sides = torch.tensor([[*map(float, ours)], theirs], dtype=torch.float32, device="cpu")
        likeness = F.cosine_similarity(sides[0], sides[1], dim=0).item()
    if not likeness >= LEAST_COSINE:  # NaN, if the squares overflow
        raise ValueError(
            "this adapter was made for other weights: the embeddings of the model and of its backbone have a cosine similarity "
            f"of {likeness:.2f}; at least {LEAST_COSINE} is accepted. Load the backbone that it was trained on, or set the "
            "config's backbone to None to use it anyway"
        )


def backbone_numbers(weight: Any) -> list[float] | None:
    """Some numbers of an embedding `[vocabulary, width]`, to four digits; None if they cannot be read or are all zero."""
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point() or weight.ndim != 2:
        return None
    numbers = weight.detach()[:NUMBERS, :NUMBERS].diagonal().float().cpu()
    return [float(f"{number:.4g}") for number in numbers.tolist()] if numbers.any() else None

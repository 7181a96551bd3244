"""Whether a model is the backbone that an adapter was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem.hook.text_decoder import text_config

IDENTITY_FIELDS = ("model_type", "hidden_size", "num_hidden_layers")
EMBEDDING = "embedding"
# How many numbers of the embedding are kept, and how like the model's they must be. Unrelated weights have a cosine of 0 within
# 0.13 (1 / sqrt(64), one standard deviation), the same weights rounded to 4 bits one of 0.97 (SmolLM2-135M).
NUMBERS, LEAST_COSINE = 64, 0.8


def backbone_identity(model: nn.Module) -> dict[str, Any]:
    """The kind of a transformers model, and some numbers of its embedding by which its weights are known again.

    The sizes are those of its text decoder.
    """
    text = text_config(model)
    numbers = _embedding_numbers(model)
    return {
        "model_type": getattr(getattr(model, "config", None), "model_type", None),
        "hidden_size": getattr(text, "hidden_size", None),
        "num_hidden_layers": getattr(text, "num_hidden_layers", None),
        EMBEDDING: None if numbers is None else [float(f"{number:.4g}") for number in numbers.tolist()],
    }


def check_description(described: Any) -> None:
    """Make sure that this is a description of a backbone, as `backbone_identity` gives it; an adapter's file may say anything.

    Raises:
        ValueError: something else; says what.
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
    """Whether this is a number, and finite in float32, in which all is computed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= torch.finfo(torch.float32).max


def check_backbone(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare the backbone of an adapter with a model's, both as `backbone_identity` gives them.

    Raises:
        ValueError: another kind of model, or another model's weights.
    """
    kinds = [{name: described.get(name) for name in IDENTITY_FIELDS} for described in (expected, found)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"this adapter was made for the backbone {kinds[0]}, but the model is {kinds[1]}; load the backbone that it was "
            "trained on"
        )
    ours, theirs = expected.get(EMBEDDING), found.get(EMBEDDING)
    if ours is None or theirs is None:  # weights that were not there to be looked at
        return
    likeness = 0.0
    if len(ours) == len(theirs):
        sides = torch.tensor([[*map(float, ours)], theirs], dtype=torch.float32, device="cpu")
        likeness = F.cosine_similarity(sides[0], sides[1], dim=0).item()
    if not likeness >= LEAST_COSINE:  # NaN, if the squares overflow
        raise ValueError(
            f"this adapter was made for other weights: the model's embedding is like that of its backbone by {likeness:.2f} "
            f"(a cosine; at least {LEAST_COSINE} is accepted). Load the backbone that it was trained on, or set the config's "
            "backbone to None to use it all the same"
        )


def _embedding_numbers(model: Any) -> Tensor | None:
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point() or weight.ndim != 2:
        return None
    numbers = weight.detach()[:NUMBERS, :NUMBERS].diagonal().float().cpu()
    return numbers if numbers.any() else None

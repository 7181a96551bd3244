"""Checks that an adapter's options fit a model, and that its file has valid weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deltamem.config import DeltaMemConfig

# The accepted dtypes in an adapter's file. In the model, the weights are float32.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_fits(
    config: DeltaMemConfig, hidden_size: int | None, layers: int | None, attention: Mapping[str, Mapping[str, Any]]
) -> None:
    """Check that an adapter's options fit a model.

    Args:
        config: the adapter's configuration.
        hidden_size: width of the model's hidden states; None if unknown.
        layers: number of the model's decoder layers; None if unknown.
        attention: the model's attention modules by name, each with its projections by role.

    Raises:
        ValueError: an option does not fit; the message names it, what was given and what is accepted.
    """
    _check_layer_indices(config, layers)
    if hidden_size is not None:
        config.memory_kind.check_fits(hidden_size)
    _check_targets(config, [*attention])
    _check_corrections(config, attention)


def shape_of_weight(name: str, weight: Any) -> tuple[int, ...]:
    """The shape of a weight in an adapter's file.

    Raises:
        ValueError: the weight is not a dense tensor of finite floating-point numbers.
    """
    if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.dtype not in DTYPES:
        found = f"{weight.dtype} ({weight.layout})" if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"the adapter's weight {name} is {found}; accepted are dense tensors of {', '.join(map(str, DTYPES))}")
    if not weight.isfinite().all():
        raise ValueError(f"the adapter's weight {name} has NaN or infinite values; only finite ones are accepted")
    return tuple(weight.shape)


def _check_targets(config: DeltaMemConfig, attention: Sequence[str]) -> None:
    targets = sorted(config.target_modules or ())
    others = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in attention)]
    if others:
        raise ValueError(
            f"target_modules={targets!r}: {others[0]!r} is no attention module; in this model they have names like "
            f"{attention[0]!r}. Give such names or their last parts, or None for all"
        )


def _check_corrections(config: DeltaMemConfig, attention: Mapping[str, Mapping[str, Any]]) -> None:
    found = {role for projections in attention.values() for role in projections}
    missing = [role for role in config.corrections if role not in found]
    if missing:
        raise ValueError(
            f"corrections={config.corrections!r}: this model's attention has no projection {', '.join(missing)} that could be "
            f"corrected; give some of {', '.join(sorted(found))}"
        )


def check_weight_shapes(adapter: str, given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that an adapter's file has exactly the weights that the model expects.

    Args:
        adapter: the name of the adapter.
        given, expected: the shapes of the weights by name, in the file and in the model.

    Raises:
        ValueError: weights are missing or unknown, or have other shapes.
    """
    for name in sorted({*expected, *given}):
        if expected.get(name) != given.get(name):
            raise ValueError(
                f"these weights are not those of the adapter {adapter!r}: {name} has {given.get(name, 'nothing')} in the file "
                f"and {expected.get(name, 'nothing')} in the model. Load them with the config with which they were saved; if "
                "the vocabulary was resized then, resize the model's in the same way. If this was the first load of this "
                f"adapter, it is attached without weights: remove it with model.delete_adapter({adapter!r})"
            )


def _check_layer_indices(config: DeltaMemConfig, layers: int | None) -> None:
    given = config.layers_to_transform
    if given is None or layers is None:
        return
    unknown = [index for index in ([given] if isinstance(given, int) else given) if index >= layers]
    if unknown:
        raise ValueError(f"layers_to_transform={given!r}: the model has the layers 0 to {layers - 1}, not {unknown[0]}")

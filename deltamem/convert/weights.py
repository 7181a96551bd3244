"""Converts the weights of a reference adapter, which are split differently from ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltamem.config import DeltaMemConfig
from deltamem.convert.options import options_from_reference, options_to_reference

# The prefix that peft adds to the names of a model's modules, and the one that all our parameters have.
PREFIX, OURS = "base_model.model.", ".delta_mem_"
ATTENTION = "self_attn"
# None stands for any size.
Shape = tuple[int | None, ...]


def from_reference(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[DeltaMemConfig, dict[str, Tensor]]:
    """Convert an adapter of the reference implementation (`declare-lab/delta-Mem`).

    Args:
        config: its `delta_mem_config.json`, with the reference's option names.
        tensors: its weights under the reference's names, `model.layers.0.self_attn.memory_q_proj` and so on.

    Returns:
        The config for `get_peft_model`, and the weights for `peft.set_peft_model_state_dict`.

    Raises:
        ValueError: an option has no counterpart in this library (the message names it), or the weights do not fit the options.
    """
    ours = options_from_reference(config)
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    for module in sorted({name.rpartition(".")[0] for name in tensors}):
        for key, parts in _parts(ours).items():
            names = [f"{module}.{part}" for part in parts]
            for name, shape in zip(names, parts.values(), strict=True):
                _check_shape("reference", tensors, name, shape)
            if len({tensors[name].shape[1:] for name in names}) > 1:
                shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names)
                raise ValueError(f"these weights of the reference adapter must have one width: {shapes}")
            used.update(names)
            weights[f"{PREFIX}{module}{OURS}{key}"] = torch.cat([tensors[name] for name in names])
        # The reference also saves weights that are switched off: of corrections, and of the gate of an absent decay.
        used.update(f"{module}.delta_{role}_proj" for role in "qkvo" if role not in ours.corrections)
        if ours.decay == "none":
            used.update(f"{module}.lambda_{part}" for part in ("proj", "bias"))
    _check_complete("reference", tensors, used)
    return ours, weights


def to_reference(config: DeltaMemConfig, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert one of our adapters to the reference implementation's names; the inverse of `from_reference`.

    Args:
        config: the adapter's configuration.
        weights: its weights, as `peft.get_peft_model_state_dict` returns them and as they are saved.

    Returns:
        The options for `delta_mem_config.json`, and the weights under the reference's names. Weights that are switched off are
        left out, since their sizes depend on the backbone; the reference then keeps its own for them.

    Raises:
        ValueError: an option has no counterpart in the reference (the message names it), or the weights do not fit the config.
    """
    options = options_to_reference(config)
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for module in sorted({name.partition(OURS)[0] for name in weights}):
        theirs = module.removeprefix(PREFIX)
        if theirs == module or theirs.rpartition(".")[2] != ATTENTION:
            raise ValueError(f"the weights of {module!r} have no place in the reference; it knows {PREFIX}….{ATTENTION} alone")
        for key, parts in _parts(config).items():
            name = f"{module}{OURS}{key}"
            heights = [shape[0] for shape in parts.values() if shape[0] is not None]  # none for a correction, a single part
            _, *rest = next(iter(parts.values()))
            _check_shape("PEFT", weights, name, (sum(heights) if heights else None, *rest))
            used.add(name)
            pieces = weights[name].split(heights or len(weights[name]))
            # Copies, since safetensors does not accept tensors that share memory.
            tensors |= {f"{theirs}.{part}": piece.clone() for part, piece in zip(parts, pieces, strict=True)}
    _check_complete("PEFT", weights, used)
    return options, tensors


def _parts(config: DeltaMemConfig) -> dict[str, dict[str, Shape]]:
    """Our parameters of one attention module, each with the reference's parameters stacked into it, and their shapes."""
    gates = ["beta", "lambda"] if config.decay == "learned" else ["beta"]
    rows = config.num_states * config.r
    gate_rows = config.num_states * (config.r if config.rowwise_gates else 1)
    entrance: dict[str, Shape] = {f"memory_{role}_proj": (rows, None) for role in "qkv"}
    entrance |= {f"{gate}_proj": (gate_rows, None) for gate in gates}
    biases: dict[str, Shape] = {f"{gate}_bias": (gate_rows,) for gate in gates}
    corrections: dict[str, dict[str, Shape]] = {
        f"{role}.weight": {f"delta_{role}_proj": (None, rows)} for role in config.corrections
    }
    return {"in.weight": entrance, "gate_bias": biases, **corrections}


def _check_shape(format_name: str, tensors: Mapping[str, Tensor], name: str, expected: Shape) -> None:
    if name not in tensors:
        raise ValueError(f"the {format_name} adapter lacks {name!r}, which its options call for")
    given = tuple(tensors[name].shape)
    if len(given) != len(expected) or any(size not in (None, found) for size, found in zip(expected, given, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"the {format_name} adapter's {name} has the shape {given}; its options call for ({wanted})")


def _check_complete(format_name: str, tensors: Mapping[str, Tensor], used: set[str]) -> None:
    unknown = sorted({*tensors} - used)
    if unknown:
        raise ValueError(f"the {format_name} adapter has {unknown[0]!r}, for which its options have no use")
    if not tensors:
        raise ValueError(f"the {format_name} adapter has no weights")

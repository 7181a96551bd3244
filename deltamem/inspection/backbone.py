"""Implements `deltamem inspect BACKBONE`: where a memory would be attached, and what it would add."""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import get_peft_model
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from deltamem.backbones import SMOLLM2, find_backbone, on_hub
from deltamem.config import VARIANTS, DeltaMemConfig
from deltamem.hook.projection import Projection, width_out
from deltamem.hook.registered import registered_hook
from deltamem.inspection.architectures import describe_hook
from deltamem.inspection.kind import ACCEPTED
from deltamem.layer import DeltaMemLayer

# A model's classes in order of preference: as a causal language model first.
CLASSES = (
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
)


def inspect_model(name: str, variant: str = "tsw", r: int | None = None, corrections: str | None = None) -> dict[str, Any]:
    """Attach a new adapter to a model without weights, and describe it.

    Args:
        name: a folder or a name on the Hub; only the configuration is read.
        variant: the adapter's variant: "tsw", "ssw" or "msw".
        r: the width of a memory; None for the adapter's default.
        corrections: the projections to correct, such as "qkvo"; None for the adapter's default.

    Returns:
        The figures: `layers`, one entry per decoder layer, and their sums.

    Raises:
        ValueError, OSError: the model or an option is not accepted; the message says why.
    """
    config = _adapter_config(variant, r, corrections)
    backbone = empty_backbone(name)
    backbone_parameters = sum(weight.numel() for weight in backbone.parameters())
    model = get_peft_model(backbone, config)
    tuner = model.base_model
    layers = {name: module for name, module in tuner.model.named_modules() if isinstance(module, DeltaMemLayer)}
    memory = model.new_memory()
    described = {name: _describe_layer(layer, memory.tensors[name]) for name, layer in layers.items()}
    rows = described | {name: _without_memory(module) for name, module in _other_layers(tuner.model, [*layers]).items()}
    order = [name for name, _ in tuner.model.named_modules() if name in rows]
    return {
        "model": name,
        "model_type": backbone.config.model_type,
        "class": type(backbone).__name__,
        "backbone_parameters": backbone_parameters,
        "hook": describe_hook(tuner._hook),
        "inferred": tuner._hook not in map(registered_hook, _model_types(backbone.config)),
        "adapter": {
            "variant": variant,
            "r": config.r,
            "state": {part: [*shape] for part, shape in config.memory_kind.state_parts.items()},
            "corrections": [*config.corrections],
        },
        "layers": [{"name": name, **rows[name]} for name in order],
        "parameters": sum(row["parameters"] for row in rows.values()),
        "memory_bytes": memory.nbytes,
    }


def print_inspection(figures: dict[str, Any]) -> None:
    """Print the result of `inspect_model` as a table."""
    console = Console()
    inferred = " (inferred: this model type is not registered)" if figures["inferred"] else ""
    state = ", ".join(" × ".join(map(str, shape)) for shape in figures["adapter"]["state"].values())
    console.print(
        f"\n[bold]{figures['class']}[/], model type {figures['model_type']}, {figures['backbone_parameters']:,} parameters\n"
        f"attention{inferred}: {escape(figures['hook'])}\n"
        f"each memory ({state}) reads hidden states of {_widths(figures)} and corrects outputs of the projections:"
    )
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("corrected")
    for header in ("parameters", "bytes"):
        table.add_column(header, justify="right")
    for row in figures["layers"]:
        table.add_row(*_cells(row))
    console.print(table)
    share = figures["parameters"] / figures["backbone_parameters"]
    console.print(
        f"An adapter ({', '.join(f'{name} {_text(value)}' for name, value in figures['adapter'].items())}) adds "
        f"{figures['parameters']:,} parameters ({share:.2%}). One memory takes {figures['memory_bytes']:,} bytes.\n"
    )


def empty_backbone(name: str) -> PreTrainedModel:
    """Create a model without weights from its configuration.

    Args:
        name: a folder or a name on the Hub.

    Raises:
        ValueError, OSError: there is no configuration, or transformers cannot create a model from it.
    """
    config = AutoConfig.from_pretrained(_source(name), trust_remote_code=False)
    auto = next((auto for auto, mapping in CLASSES if type(config) in mapping), AutoModel)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config)
    except Exception as error:  # a model's code may raise anything about a configuration
        raise ValueError(
            f"transformers makes no model of the type {config.model_type!r} from the configuration of {name!r}: {error!r}"
        ) from error
    return model.eval()


def _source(name: str) -> str:
    """Resolve a name to a folder with a configuration, or to a name known to the Hub or its local cache."""
    if not os.path.isdir(name) and name != SMOLLM2 and not on_hub(name):
        raise OSError(f"{name!r} is no file and no folder, and the Hub cannot be asked for it; give {ACCEPTED}")
    source = find_backbone(name)
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise OSError(f"the folder {name!r} has no config.json, so it holds no model")
    return source


def _adapter_config(variant: str, r: int | None, corrections: str | None) -> DeltaMemConfig:
    if variant not in VARIANTS:
        raise ValueError(f"--variant {variant!r} is not accepted; choose one of {', '.join(VARIANTS)}")
    options = {"r": r, "corrections": None if corrections is None else tuple(corrections)}
    return VARIANTS[variant](**{name: value for name, value in options.items() if value is not None})


def _describe_layer(layer: DeltaMemLayer, state: Tensor) -> dict[str, Any]:
    weights = layer.adapter_weights("default")
    names = {module: name for name, module in layer.base_layer.named_modules()}
    return {
        "class": type(layer.base_layer).__name__,
        "reads": weights["in"].shape[1],
        "projections": {
            role: {**_describe_projection(projection, names), "corrected": role in weights}
            for role, projection in layer.projections.items()
        },
        "state": [*state.shape[1:]],
        "parameters": sum(weight.numel() for weight in weights.values()),
        "memory_bytes": state.nbytes,
    }


def _describe_projection(projection: Projection, names: dict[nn.Module, str]) -> dict[str, Any]:
    """A projection's location: `outputs` of the `width` outputs of a module."""
    return {"module": names[projection.module], "outputs": projection.out_features, "width": width_out(projection.module)}


def _other_layers(model: nn.Module, attention: list[str]) -> dict[str, nn.Module]:
    """The decoder layers without a memory, by name: those in the same module list as layers with one."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and any(other.startswith(f"{name}.") for other in attention):
            found |= {f"{name}.{index}": layer for index, layer in module.named_children()}
    return {name: layer for name, layer in found.items() if not any(f"{other}.".startswith(f"{name}.") for other in attention)}


def _without_memory(layer: nn.Module) -> dict[str, Any]:
    return {"class": type(layer).__name__, "projections": {}, "parameters": 0, "memory_bytes": 0}


def _model_types(config: PreTrainedConfig) -> list[str]:
    return [config.model_type, config.get_text_config().model_type]


def _cells(row: dict[str, Any]) -> list[str]:
    if not row["projections"]:
        return [row["name"], "no memory", "", ""]
    corrected = [_place(role, **place) for role, place in row["projections"].items() if place["corrected"]]
    return [row["name"], escape(", ".join(corrected)), f"{row['parameters']:,}", f"{row['memory_bytes']:,}"]


def _place(role: str, module: str, outputs: int, width: int, corrected: bool) -> str:
    return f"{module} {width}" if outputs == width else f"{module}[{role}] {outputs} of {width}"


def _widths(figures: dict[str, Any]) -> str:
    return " or ".join(map(str, dict.fromkeys(row["reads"] for row in figures["layers"] if "reads" in row)))


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)

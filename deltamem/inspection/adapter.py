"""Implements `deltamem inspect ADAPTER`: an adapter's parameters, norms and gates by layer, from its files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from deltamem.adapter.files import read_config, read_weights
from deltamem.adapter.fingerprint import fingerprint_of
from deltamem.config import MEMORY_OPTIONS, DeltaMemConfig
from deltamem.hub.card_text import Size, config_in_words
from deltamem.inspection.layer_names import in_order, short_names
from deltamem.model import DeltaMemModel

SAVED_UNDER = "base_model.model."
SHOWN_OPTIONS = (*MEMORY_OPTIONS, "turn_writes")
CAPTION = "Norms of the weights, and the gates where they see nothing: β, and what a write keeps."


def inspect_adapter(name: str) -> dict[str, Any]:
    """Describe an adapter without its backbone.

    Args:
        name: the adapter's folder, or a name on the Hub.

    Returns:
        `layers`, for each attention layer its `parameters`; the Frobenius norms of its `projections` (query, key, value, and
        the gates' weights, which show how much the gates depend on the token) and of its `corrections` (scaled by alpha / r, as
        in use); and its gates at rest, for a zero input: `write_gate` (β; mean, minimum and maximum over its rows) and
        `keep_gate` (what a write keeps, likewise). Then their sums, the config, what the adapter was made for, and
        `of_the_backbone`: the names of other weights in its file (embeddings, after a change of the vocabulary).

    Raises:
        ValueError: the adapter is not a δ-mem adapter, or its weights are damaged or do not fit its config.
        OSError: it has no weights.
    """
    config, saved = read_config(name), read_weights(name)
    others = [key for key in saved if f".{DeltaMemModel.prefix}" not in key]
    weights = _by_layer({key: weight for key, weight in saved.items() if key not in others})
    if not weights:
        found = ", ".join(others[:3]) or "there are none"
        raise ValueError(f"the weights of {name!r} are not those of the adapter's config: {found}. Save the adapter again")
    layers = {layer: _describe_layer(layer, own, config) for layer, own in weights.items()}
    numbers = {f"{layer}.{key}": weight for layer, own in weights.items() for key, weight in own.items()}
    size = Size.from_shapes(config, {key: weight.shape for key, weight in saved.items()})
    return {
        "adapter": name,
        "in_words": config_in_words(config, size),
        "backbone": config.base_model_name_or_path,
        "made_for": {key: value for key, value in (config.backbone or {}).items() if key != "embedding"},
        "fingerprint": fingerprint_of(config, numbers) if config.backbone else None,  # it covers the backbone
        "config": {key: getattr(config, key) for key in SHOWN_OPTIONS},
        "layers": [{"name": layer, **row} for layer, row in layers.items()],
        "of_the_backbone": others,
        "parameters": size.parameters,
        "memory_bytes": size.memory_bytes,
    }


def print_adapter(figures: dict[str, Any]) -> None:
    """Print the result of `inspect_adapter` as a table."""
    console = Console()
    made_for = ", ".join(f"{key} {value}" for key, value in figures["made_for"].items()) or "not said"
    fingerprint = figures["fingerprint"] or "not known without its backbone"
    console.print(
        f"\n[bold]An adapter of δ-mem[/] for {escape(str(figures['backbone']))} ({escape(made_for)})",
        f"Fingerprint: {fingerprint}",
        *map(escape, figures["in_words"]),
        *(f"Beside these a weight of the backbone: {escape(key)}" for key in figures["of_the_backbone"]),
        sep="\n",
    )
    roles = [*figures["layers"][0]["projections"]], figures["config"]["corrections"]
    norms = [*(f"|{role}|" for role in roles[0]), *(f"|Δ{role}|" for role in roles[1])]
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True, caption=CAPTION)
    for header in ("layer", "weights", *norms, "β", "keeps"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, row in zip(short_names([row["name"] for row in figures["layers"]]), figures["layers"], strict=True):
        values = [*row["projections"].values(), *(row["corrections"].get(role) for role in roles[1])]
        gates = (f"{row[gate]['mean']:.3f}" for gate in ("write_gate", "keep_gate"))
        table.add_row(name, f"{row['parameters']:,}", *("–" if value is None else f"{value:.3g}" for value in values), *gates)
    console.print(table)


def _by_layer(saved: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """An adapter's weights by attention layer, in layer order: `in`, `gate_bias` and the corrections."""
    weights: dict[str, dict[str, Tensor]] = {}
    for key, weight in sorted(saved.items(), key=lambda item: in_order(item[0])):
        layer, _, own = key.removeprefix(SAVED_UNDER).partition(f".{DeltaMemModel.prefix}")
        weights.setdefault(layer, {})[own.removesuffix(".weight")] = weight.float()
    return weights


def _describe_layer(name: str, weights: dict[str, Tensor], config: DeltaMemConfig) -> dict[str, Any]:
    kind = config.memory_kind
    groups = kind.row_groups
    rows = sum(groups.values())
    in_weight, bias = weights.get("in"), weights.get("gate_bias")
    if in_weight is None or bias is None or in_weight.shape[0] != rows or bias.shape != (kind.bias_rows,):
        found = ", ".join(f"{key} {[*weight.shape]}" for key, weight in weights.items())
        raise ValueError(
            f"the weights of {name} are not those of the adapter's config, which needs `in` [{rows}, width] and "
            f"`gate_bias` [{kind.bias_rows}]; found {found}. Save the adapter again"
        )
    norms = [part.norm().item() for part in in_weight.split([*groups.values()])]
    gates = {f"{gate}_gate": _spread(opened) for gate, opened in kind.gates_at_rest(bias).items()}
    scale, corrected = config.alpha / config.r, [role for role in config.corrections if role in weights]
    return {
        "parameters": sum(weight.numel() for weight in weights.values()),
        "projections": dict(zip(groups, norms, strict=True)),
        "corrections": {role: scale * weights[role].norm().item() for role in corrected},
        **gates,
    }


def _spread(gates: Tensor) -> dict[str, float]:
    return {"mean": gates.mean().item(), "least": gates.min().item(), "most": gates.max().item()}

"""The text of a model card: how to use an adapter, and its configuration in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from deltamem.config import DeltaMemConfig

# A card with this line is rewritten whenever the adapter is saved.
GENERATED = "<!-- Written by deltamem. Take this line out, and the text below stays as you change it. -->"
PAPER = "https://arxiv.org/abs/2605.12357"
# Bytes per number in a memory.
FLOAT32 = 4
DECAYS = {
    "coupled": "a write keeps one minus its gate of the memory",
    "learned": "a separate gate sets what a write keeps of the memory",
    "none": "nothing decays",
}
TURNS = {"after": "after it was answered", "during": "while it is read and answered"}


@dataclass(frozen=True)
class Size:
    """An adapter's number of layers and parameters, and the bytes of one memory."""

    layers: int
    parameters: int
    memory_bytes: int

    @classmethod
    def from_shapes(cls, config: DeltaMemConfig, shapes: Mapping[str, Sequence[int]]) -> Size:
        """Compute an adapter's size from its weights' shapes, by their names in its file; embeddings do not count."""
        shapes = {name: shape for name, shape in shapes.items() if ".delta_mem_" in name}
        layers = sum(name.endswith(".delta_mem_in.weight") for name in shapes)  # one per layer
        numbers = layers * sum(map(math.prod, config.memory_kind.state_parts.values()))
        return cls(layers, sum(map(math.prod, shapes.values())), FLOAT32 * numbers)


def card_text(
    config: DeltaMemConfig,
    size: Size,
    name: str,
    base: str | None,
    training: dict[str, str],
    results: Sequence[dict[str, Any]],
) -> str:
    """The card's text below the metadata, in Markdown.

    Args:
        config: the adapter's configuration.
        size: the adapter's size.
        name: the name to load it by.
        base: the name of its backbone; None if unknown.
        training: as returned by `training_of`.
        results: as returned by `evaluation_of`.
    """
    of = f" for {base}" if base else ""
    parts = [
        GENERATED,
        f"# δ-mem{of}",
        f"```python\n{usage(config, name, base or 'THE_BACKBONE')}\n```",
        f"An adapter of [δ-mem]({PAPER}): a small online memory in the attention layers of a frozen model. A memory is a value "
        "that whoever calls the model keeps, saves and loads; an empty one corrects nothing.",
        "\n".join(f"- {line}" for line in config_in_words(config, size)),
    ]
    if training:
        parts += ["## Training", *_training(training)]
    if results:
        parts += ["## Evaluation", "`deltamem eval`; in brackets the 95% interval.", _table(results)]
    parts += ["## Framework versions", f"- PEFT {config.peft_version}\n- deltamem {version('deltamem')}"]
    return "\n\n".join(parts) + "\n"


def usage(config: DeltaMemConfig, name: str, base: str) -> str:
    """Example code that loads and uses the adapter."""
    auto = "AutoModel" if config.task_type == "FEATURE_EXTRACTION" else "AutoModelForCausalLM"
    name, base = json.dumps(name, ensure_ascii=False), json.dumps(base, ensure_ascii=False)
    lines = [
        "import deltamem  # registers the PEFT method, before the adapter is loaded",
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f"model = PeftModel.from_pretrained({auto}.from_pretrained({base}), {name})",
        f"tokenizer = AutoTokenizer.from_pretrained({base})",
    ]
    if auto == "AutoModel":
        lines += [
            "state = model.new_memory()",
            "with model.memory(state):",
            '    model(**tokenizer("Anna lives in Oslo.", return_tensors="pt"))',
        ]
    else:
        lines += [
            "chat = deltamem.ChatSession(model, tokenizer)",
            'chat.observe("Anna lives in Oslo.")  # written to the memory, not kept in the context',
            'print(chat.reply("Where does Anna live?"))',
        ]
    return "\n".join(lines)


def config_in_words(config: DeltaMemConfig, size: Size) -> list[str]:
    """Describe a configuration, one line per aspect."""
    r, scale = config.r, config.alpha / config.r
    state = " + ".join(" × ".join(map(str, shape)) for shape in config.memory_kind.state_parts.values())
    return [
        f"Variant: {_variant(config)}; {DECAYS[config.decay]}.",
        f"Corrects the {' and '.join(config.corrections)} projections of {size.layers} attention layers, "
        f"scaled by alpha / r = {config.alpha:g} / {r} = {scale:g}.",
        f"{size.parameters:,} trained parameters. One memory takes {size.memory_bytes:,} bytes: "
        f"{size.layers} × {state} float32 numbers.",
        f"A chat session writes a turn {TURNS[config.turn_writes]}.",
    ]


def _variant(config: DeltaMemConfig) -> str:
    written = f"once for every {config.write}" if config.writes_segments else "by every token"
    return f"{config.variant}, {config.memory_kind.describe()} in each layer, written {written}"


def _training(note: dict[str, str]) -> list[str]:
    parts = []
    if "data" in note:
        parts.append(f"Data: {note['data']}.")
    if "command" in note:
        parts.append(f"```sh\n{note['command']}\n```")
    return parts


def _table(results: Sequence[dict[str, Any]]) -> str:
    rows = [["task", "answered with", "metric", "questions", "value"], ["---"] * 5]
    for entry in results:
        task = entry["task"] if entry["group"] is None else f"{entry['task']}: {entry['group']}"
        form = "{:.1%}" if entry["share"] else "{:.2f}"
        value, low, high = (form.format(entry[key]) for key in ("value", "low", "high"))
        rows.append([task, entry["setting"], entry["metric"], str(entry["questions"]), f"{value} ({low} to {high})"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

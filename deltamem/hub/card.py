"""The model card of an adapter, completed from what lies in its folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from deltamem.config import DeltaMemConfig
from deltamem.hub.card_text import GENERATED, Size, card_text
from deltamem.hub.training_record import evaluation_of, training_of
from deltamem.io.files import check_regular, write_atomically

CARD = "README.md"
TAGS = ("delta-mem", "memory")
ADAPTER_OF = "base_model:adapter:"
# What peft and transformers put into the Hub's template of a card by themselves.
AUTOMATIC = re.compile(r"### Framework versions|- PEFT .*|This is the model card of a 🤗 transformers model .*")


def write_card(folder: Path, config: DeltaMemConfig, name: str | None = None, **metadata: Any) -> None:
    """Write the README.md of a folder with an adapter, as `make_card` makes it; nothing where there are no weights yet.

    Args:
        folder, config, name, metadata: see `make_card`.

    Raises:
        ValueError: see `make_card`.
    """
    if (folder / SAFETENSORS_WEIGHTS_NAME).exists():
        write_atomically(folder / CARD, str(make_card(folder, config, name, **metadata)).encode("utf-8"), private=False)


def make_card(folder: Path, config: DeltaMemConfig, name: str | None = None, **metadata: Any) -> ModelCard:
    """The model card of an adapter.

    Metadata that the folder's README.md has is kept, and so is its text, unless nobody wrote it: then it is made of the
    configuration, the weights' shapes, `training.json` and `evaluation.json`.

    Args:
        folder: with the adapter's weights.
        config: of the adapter.
        name: under which it is loaded; that of the folder if None.
        metadata: what else the Hub is told, `license="apache-2.0"` for one.

    Raises:
        ValueError: metadata, `training.json` or `evaluation.json` that cannot be read.
    """
    path = folder / CARD
    check_regular(path)
    card = ModelCard.load(path) if path.exists() else ModelCard.from_template(ModelCardData())
    generated = GENERATED in card.text or _is_template(card.text)
    for key, value in metadata.items():
        card.data[key] = value
    base, results = hub_name(config.base_model_name_or_path), evaluation_of(folder)
    _complete(card.data, config, base)
    if results and (generated or card.data.eval_results is None):
        card.data.model_name = f"δ-mem for {base}" if base else "δ-mem"
        card.data.eval_results = [_eval_result(entry) for entry in results]
    if generated:
        size = Size.of(config, _shapes(folder / SAFETENSORS_WEIGHTS_NAME))
        card.text = card_text(config, size, name or folder.name, base, training_of(folder), results)
    return card


def has_hub_form(name: str | None) -> bool:
    """Whether a name has the form of those on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def hub_name(name: str | None) -> str | None:
    """The name if it can be one on the Hub: of the right form, and no folder of this machine."""
    return None if name is None or not has_hub_form(name) or os.path.isdir(name) else name


def _complete(data: Any, config: DeltaMemConfig, base: str | None) -> None:
    """Add the metadata that is missing. A folder of this machine, which peft names as the backbone, is none to others."""
    data.library_name = "peft"
    if not isinstance(data.base_model, list) and hub_name(data.base_model) is None:
        data.base_model = base
    kept = [tag for tag in data.tags or () if hub_name(tag.removeprefix(ADAPTER_OF)) or not tag.startswith(ADAPTER_OF)]
    data.tags = [*dict.fromkeys([*kept, *TAGS, *([f"{ADAPTER_OF}{base}"] if base else [])])]
    if config.task_type == "CAUSAL_LM":
        data.pipeline_tag = data.pipeline_tag or "text-generation"


def _is_template(text: str) -> bool:
    """Whether all of a card's lines are those of the Hub's template."""
    template = {*ModelCard.from_template(ModelCardData()).text.splitlines()}
    return all(line in template or AUTOMATIC.fullmatch(line) for line in text.splitlines())


def _shapes(weights: Path) -> dict[str, list[int]]:
    """The shapes of an adapter's weights by name; from the file's header, without the numbers."""
    with safe_open(weights, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)


def _eval_result(entry: dict[str, Any]) -> EvalResult:
    """An entry of `deltamem eval`, as the Hub's model index has it."""
    return EvalResult(
        task_type="text-generation",
        dataset_type=entry["task"],
        dataset_name=entry["task"],
        dataset_config=entry["group"],
        metric_type=entry["metric"],
        metric_name=f"{entry['metric']}, answered with: {entry['setting']}",
        metric_value=entry["value"],
        metric_args={"questions": entry["questions"], "interval_95": [entry["low"], entry["high"]]},
    )

"""An adapter's model card, completed from the files in its folder."""

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
# Lines that peft and transformers add to the Hub's card template on their own.
AUTOMATIC = re.compile(r"### Framework versions|- PEFT .*|This is the model card of a 🤗 transformers model .*")


def write_card(folder: Path, config: DeltaMemConfig, name: str | None = None, **metadata: Any) -> None:
    """Write the README.md of an adapter's folder (see `make_card`), unless it has no weights yet.

    Args:
        folder, config, name, metadata: see `make_card`.

    Raises:
        ValueError: see `make_card`.
    """
    if (folder / SAFETENSORS_WEIGHTS_NAME).exists():
        write_atomically(folder / CARD, str(make_card(folder, config, name, **metadata)).encode("utf-8"), private=False)


def make_card(folder: Path, config: DeltaMemConfig, name: str | None = None, **metadata: Any) -> ModelCard:
    """Create the model card of an adapter.

    The metadata of the folder's README.md is kept. So is its text, unless it is generated or the Hub's template; then it is
    rewritten from the configuration, the weights' shapes, `training.json` and `evaluation.json`.

    Args:
        folder: holds the adapter's weights.
        config: the adapter's configuration.
        name: the name to load it by; None for the folder's name.
        metadata: further metadata for the Hub, such as `license="apache-2.0"`.

    Raises:
        ValueError: the metadata, `training.json` or `evaluation.json` cannot be read.
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
        size = Size.from_shapes(config, _shapes(folder / SAFETENSORS_WEIGHTS_NAME))
        card.text = card_text(config, size, name or folder.name, base, training_of(folder), results)
    return card


def has_hub_form(name: str | None) -> bool:
    """Whether a name is a valid Hub name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def hub_name(name: str | None) -> str | None:
    """Return the name if it can exist on the Hub: it is valid, and not a local folder; otherwise None."""
    return None if name is None or not has_hub_form(name) or os.path.isdir(name) else name


def _complete(data: Any, config: DeltaMemConfig, base: str | None) -> None:
    """Add missing metadata. A local folder, which peft may name as the backbone, is dropped: it means nothing elsewhere."""
    data.library_name = "peft"
    if not isinstance(data.base_model, list) and hub_name(data.base_model) is None:
        data.base_model = base
    kept = [tag for tag in data.tags or () if hub_name(tag.removeprefix(ADAPTER_OF)) or not tag.startswith(ADAPTER_OF)]
    data.tags = [*dict.fromkeys([*kept, *TAGS, *([f"{ADAPTER_OF}{base}"] if base else [])])]
    if config.task_type == "CAUSAL_LM":
        data.pipeline_tag = data.pipeline_tag or "text-generation"


def _is_template(text: str) -> bool:
    """Whether all lines of a card come from the Hub's template."""
    template = {*ModelCard.from_template(ModelCardData()).text.splitlines()}
    return all(line in template or AUTOMATIC.fullmatch(line) for line in text.splitlines())


def _shapes(weights: Path) -> dict[str, list[int]]:
    """The shapes of an adapter's weights by name, read from the file's header alone."""
    with safe_open(weights, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a mapping)


def _eval_result(entry: dict[str, Any]) -> EvalResult:
    """Convert an entry of `deltamem eval` for the Hub's model index."""
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

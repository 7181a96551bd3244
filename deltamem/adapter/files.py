"""Reads and checks the two files of an adapter, its config and its weights, from a folder or the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from deltamem.adapter.checks import shape_of_weight
from deltamem.config import DELTA_MEM, DeltaMemConfig


def read_config(adapter: str | Path) -> DeltaMemConfig:
    """Read the config of a δ-mem adapter.

    Args:
        adapter: its folder, as a path or a string, or its name on the Hub, as a string.

    Raises:
        OSError: there is no such adapter.
        ValueError: the config cannot be read, has values that are not accepted, or belongs to another method.
    """
    path = _file(adapter, CONFIG_NAME)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not JSON: {error}") from error
    method = found.get("peft_type") if isinstance(found, dict) else None
    if method != DELTA_MEM.value:
        raise ValueError(
            f"{os.fspath(adapter)!r} holds an adapter of the method {method!r}, which has no memory; give a δ-mem adapter"
        )
    config: DeltaMemConfig = PeftConfig.from_pretrained(os.fspath(path.parent))
    return config


def read_weights(adapter: str | Path) -> dict[str, Tensor]:
    """Read the weights of an adapter, by their names in its safetensors file.

    Args:
        adapter: see `read_config`.

    Raises:
        OSError: there is no such adapter.
        ValueError: the weights cannot be read, or are not dense tensors of finite floating-point numbers.
    """
    return read_tensors(_file(adapter, SAFETENSORS_WEIGHTS_NAME))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, and check that they can be weights of an adapter.

    Raises:
        ValueError: see `read_weights`.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)!r} is not a readable safetensors file: {error}") from error
    check_weights(tensors)
    return tensors


def check_weights(weights: Mapping[str, Any]) -> None:
    """Check that all values can be weights of an adapter.

    Raises:
        ValueError: see `shape_of_weight`.
    """
    for name, weight in weights.items():
        shape_of_weight(name, weight)


def backbone_of(adapter: str) -> str:
    """The backbone that an adapter names in its config, for δ-mem or any other PEFT method.

    Args:
        adapter: the folder of the adapter, or its name on the Hub.

    Raises:
        ValueError: the adapter is missing, or does not name its backbone.
    """
    name: str | None = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if name is None:
        raise ValueError(f"the adapter {adapter!r} does not say what its backbone is; name the backbone as well")
    return name


def check_folder(folder: Path) -> None:
    """Check that a folder exists.

    Raises:
        FileNotFoundError: it does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {os.fspath(folder)!r}; fetch an adapter from the Hub with `hf download` first"
        )


def _file(adapter: str | Path, name: str) -> Path:
    """The path of an adapter's file on this machine, downloaded if it is on the Hub."""
    if isinstance(adapter, str) and not os.path.isdir(adapter):
        try:
            return Path(cached_file(adapter, name))
        except OSError as error:
            raise OSError(
                f"there is no adapter {adapter!r}: it is not a folder, and the Hub has no {name} for it. {error}"
            ) from error
    folder = Path(adapter)
    check_folder(folder)
    if not (folder / name).is_file():
        raise FileNotFoundError(f"the folder {os.fspath(folder)!r} holds no PEFT adapter: it has no {name}")
    return folder / name

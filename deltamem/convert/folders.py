"""Reads and writes adapters in folders, in the reference's format and in PEFT's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from deltamem.adapter.files import check_folder, check_weights, read_tensors
from deltamem.config import DeltaMemConfig
from deltamem.hub.training_record import note_training

REFERENCE_CONFIG, REFERENCE_PICKLE, REFERENCE_WEIGHTS = (
    "delta_mem_config.json",
    "delta_mem_adapter.pt",
    "delta_mem_adapter.safetensors",
)
# The first torch whose weights_only unpickler is safe from out-of-bounds writes: GHSA-63cw-57p8-fm3p.
SAFE_TORCH = "2.10"
# For the training section of the card.
ORIGIN = "that of an adapter of the authors' research code, from which `deltamem convert` took this one with the same numbers"


def read_reference(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the options and weights of a reference adapter; a safetensors file takes precedence over the pickle.

    Raises:
        FileNotFoundError: the folder lacks these files.
        ValueError: a file holds something else, or this torch cannot read a pickle safely.
    """
    path = _file(folder, REFERENCE_CONFIG, "an adapter of PEFT is converted with --to reference")
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{os.fspath(path)!r} holds {type(options).__name__} where an object with options belongs")
    if (folder / REFERENCE_WEIGHTS).is_file():
        return options, read_tensors(folder / REFERENCE_WEIGHTS)
    return options, _pickled(_file(folder, REFERENCE_PICKLE, f"or {REFERENCE_WEIGHTS}"))


def write_reference(folder: Path, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter under the reference's names, with its weights as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / REFERENCE_WEIGHTS)
    (folder / REFERENCE_CONFIG).write_text(json.dumps(options, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_adapter(folder: Path, config: DeltaMemConfig, weights: Mapping[str, Tensor]) -> None:
    """Write an adapter as PEFT's `save_pretrained` does, with a card that states its origin."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    note_training(folder, ORIGIN)
    config.save_pretrained(os.fspath(folder))  # also writes the card from the files in the folder


def _file(folder: Path, name: str, otherwise: str) -> Path:
    check_folder(folder)
    if not (folder / name).is_file():
        raise FileNotFoundError(f"the folder {os.fspath(folder)!r} has no {name}; {otherwise}")
    return folder / name


def _pickled(path: Path) -> dict[str, Tensor]:
    if torch.__version__ < SAFE_TORCH:
        raise ValueError(
            f"{os.fspath(path)!r} is a pickle, and this is torch {torch.__version__}: before {SAFE_TORCH}, a crafted one can "
            "run code even where nothing but weights is accepted (GHSA-63cw-57p8-fm3p). Install a newer torch, or give "
            f"the weights as {REFERENCE_WEIGHTS}"
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a dozen types, for damaged files and for ones that would run code
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{os.fspath(path)!r} is not a file of weights alone, so it is not read: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise ValueError(f"{os.fspath(path)!r} holds {type(loaded).__name__} where a dictionary of tensors by name belongs")
    check_weights(loaded)
    return loaded

"""`deltamem convert`: converts an adapter from the reference's format to PEFT's, or back."""

from __future__ import annotations

import os
from pathlib import Path

from deltamem.adapter.files import read_config, read_weights
from deltamem.convert.folders import read_reference, write_adapter, write_reference
from deltamem.convert.weights import from_reference, to_reference

FORMATS = ("peft", "reference")


def convert(source: Path, target: Path, to: str = "peft", base_model: str | None = None) -> dict[str, int]:
    """Convert the adapter in one folder into another folder.

    Args:
        source: a folder with an adapter in the other format.
        target: a folder that is empty or does not exist.
        to: "peft" or "reference".
        base_model: the model that the adapter was made for, a folder or a Hub name. Required for "peft", not accepted
            otherwise.

    Returns:
        The number of `tensors` and `parameters` written.

    Raises:
        ValueError, OSError: the adapter cannot be read or converted, or the target is not empty; raised before anything is
            written.
    """
    if to not in FORMATS:
        raise ValueError(f"--to {to!r} is not accepted; choose one of {', '.join(FORMATS)}")
    if target.is_file():
        raise ValueError(f"{os.fspath(target)!r} is a file; give a folder that is empty, or a new one")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"the folder {os.fspath(target)!r} is not empty; give one that is, or a new one")
    if (to == "peft") != (base_model is not None):
        needed = "is missing: name the model that the adapter was made for" if to == "peft" else "is only for --to peft"
        raise ValueError(f"--base-model {needed}")
    if to == "peft":
        config, weights = from_reference(*read_reference(source))
        config.base_model_name_or_path, config.inference_mode = base_model, True
        write_adapter(target, config, weights)
    else:
        options, weights = to_reference(read_config(source), read_weights(source))
        write_reference(target, options, weights)
    return {"tensors": len(weights), "parameters": sum(weight.numel() for weight in weights.values())}

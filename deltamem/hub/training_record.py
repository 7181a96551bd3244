"""What a model card reports about training and evaluation: two optional files beside the weights."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from deltamem.io.files import check_regular, write_atomically
from deltamem.io.shareable import shareable

TRAINING = "training.json"
EVALUATION = "evaluation.json"  # the output of `deltamem eval ... --json`
GENERATED_FACTS = "generated facts"


def note_training(folder: str | os.PathLike[str], data: str, arguments: Sequence[str] | None = None) -> None:
    """Record how an adapter was trained, for its model card; call it before saving the adapter to the same folder.

    Of absolute paths among the arguments, only the last part is recorded.

    Args:
        folder: the adapter's folder.
        data: a description of the training data.
        arguments: the arguments of `deltamem train`; None if it was trained otherwise.
    """
    command = {} if arguments is None else {"command": shlex.join(["deltamem", "train", *map(shareable, arguments)])}
    note = {"data": data, **command}
    path = Path(folder) / TRAINING
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(note, indent=2, ensure_ascii=False) + "\n").encode("utf-8"), private=False)


def training_of(adapter: str | Path) -> dict[str, str]:
    """Read the record of `note_training`; empty if there is none.

    Args:
        adapter: the adapter's folder, or its name on the Hub.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(adapter) / TRAINING
    if not path.parent.is_dir():
        try:
            path = Path(hf_hub_download(str(adapter), TRAINING))
        except OSError:  # the Hub has no such file, or cannot be reached
            return {}
    note = _read(path, {})
    if not isinstance(note, dict) or not all(isinstance(value, str) for value in note.values()):
        raise ValueError(f"{path} is not accepted; give a JSON object with texts, data and command")
    return note


def trained_on_facts_alone(adapter: str | Path) -> bool:
    """Whether an adapter's record says that it was trained on generated facts and nothing else.

    Args:
        adapter: see `training_of`.
    """
    return training_of(adapter).get("data") == GENERATED_FACTS


def evaluation_of(folder: Path) -> list[dict[str, Any]]:
    """Read the results of `deltamem eval --json`; empty if there is no such file.

    Raises:
        ValueError: the file holds something else.
    """
    path = folder / EVALUATION
    found = _read(path, {"results": []})
    needed = {"task", "group", "setting", "metric", "questions", "share", "value", "low", "high"}
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or not all(isinstance(entry, dict) and needed <= {*entry} for entry in results):
        raise ValueError(f"{path} is not accepted; give what `deltamem eval ... --json` printed")
    return results


def _read(path: Path, otherwise: Any) -> Any:
    if not path.exists():
        return otherwise
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error

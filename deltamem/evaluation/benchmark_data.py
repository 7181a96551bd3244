"""Loads a benchmark's data, from a file, a folder or the Hub, and samples its questions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from deltamem.evaluation.task import Options
from deltamem.training.given import Given
from deltamem.training.records import ENDINGS, read_records


def benchmark_records(name: str, hub: tuple[str, str | None, str] | None, options: Options) -> list[Given]:
    """Load a benchmark's records from `--data`, a folder, or the Hub.

    Args:
        name: the benchmark's name, which is also its file's name in the folder.
        hub: its official data set, configuration and split; None if it is not on the Hub.
        options: name the file or the folder.

    Raises:
        ValueError: the file is missing or empty; the Hub cannot be reached.
    """
    wanted = f"give a file with --data, or a folder that holds {name}.jsonl with --data-dir"
    file = options.data or (options.data_dir and _in_folder(options.data_dir, name))
    if file is not None:
        if not file.exists():
            raise ValueError(f"{name} needs its data, and {file} does not exist; {wanted}")
        return read_records(str(file))
    if hub is None:
        raise ValueError(f"{name} needs its data, which is not on the Hub; {wanted}")
    try:
        return read_records(hub[0], hub[2], hub[1])
    except ValueError as error:
        raise ValueError(f"{name} needs its data: {wanted}, or connect to the Hub. {error}") from error


def sampled_numbers(count: int, options: Options) -> list[int]:
    """Sample at most `--limit` of `count` question numbers by the seed, in ascending order."""
    wanted = count if options.limit is None else min(options.limit, count)
    return sorted(random.Random(options.seed).sample(range(count), wanted))


def identity(options: Options) -> dict[str, Any]:
    """The options that determine which questions are asked."""
    return {
        "data": None if options.data is None else str(options.data),
        "data_dir": None if options.data_dir is None else str(options.data_dir),
        "limit": options.limit,
    }


def _in_folder(folder: Path, name: str) -> Path:
    """A benchmark's file with any known ending; the path with the first ending if there is none."""
    files = [folder / f"{name}{ending}" for ending in ENDINGS]
    return next((file for file in files if file.exists()), files[0])

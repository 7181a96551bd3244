"""Reads the results that `deltamem eval --output` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem.evaluation.results import MEMORIES, OPTIONS, SEED_FOLDER
from deltamem.evaluation.task import Row
from deltamem.io.json_lines import whole_lines

# The display order of settings; unknown ones come last.
ORDER = (
    "none",
    "memory",
    "zero",
    "shuffled",
    "adapter",
    "full",
    "full+memory",
    "tail",
    "bm25",
    "bm25+memory",
    "filled",
    "writing",
)
NUMBERED = re.compile(SEED_FOLDER.format(r"(\d+)"))


@dataclass(frozen=True)
class TaskResults:
    """The saved results of one task.

    Args:
        name: the task's name.
        options: what its results depend on; with several seeds, the first one's.
        seeds: the rows by setting, for each seed; all settings have the same questions in the same order.
        memories: the files of memories by history, in the order they were saved.
        notes: messages about results that are not used.
    """

    name: str
    options: dict[str, Any]
    seeds: list[dict[str, list[Row]]]
    memories: dict[str, list[Path]]
    notes: list[str]


def read_results(folder: Path) -> list[TaskResults]:
    """Read the results of all tasks in a folder, or in its subfolders `seed-1`, `seed-2`, ...

    Raises:
        ValueError, OSError: the folder does not exist, has no answers, or cannot be read; the message says where.
    """
    if not folder.is_dir():
        raise OSError(f"there is no folder {folder}; give the one that deltamem eval --output wrote")
    if (folder / OPTIONS).is_file():
        raise ValueError(f"{folder} is the folder of one task; give the one that it is in, {folder.resolve().parent}")
    seeds = {int(found[1]): place for place in folder.iterdir() if place.is_dir() and (found := NUMBERED.fullmatch(place.name))}
    places = [folder, *(seeds[seed] for seed in sorted(seeds))]
    by_task: dict[str, list[Path]] = {}
    for options in (options for place in places for options in sorted(place.glob(f"*/{OPTIONS}"))):
        by_task.setdefault(options.parent.name, []).append(options.parent)
    tasks = [_task(name, several) for name, several in by_task.items()]
    answered = [task for task in tasks if task.seeds]
    if not answered:
        raise ValueError(
            f"{folder} has no results of an evaluation; expected folders TASK with {OPTIONS} and answers in SETTING.jsonl, as "
            "deltamem eval --output writes them"
        )
    return answered


def in_order(settings: Iterable[str]) -> list[str]:
    """Sort settings into display order."""
    return sorted(settings, key=lambda setting: (ORDER.index(setting) if setting in ORDER else len(ORDER), setting))


def _task(name: str, folders: Sequence[Path]) -> TaskResults:
    notes: list[str] = []
    options = [_options(folder / OPTIONS) for folder in folders]
    for folder, other in zip(folders, options, strict=True):
        _check_alike(folders[0], options[0], folder, other)
    answered = {folder: rows for folder in folders if (rows := _rows(folder, notes))}
    settings = _in_all(answered.values())
    for folder, rows in answered.items():
        left_out = [setting for setting in rows if setting not in settings]
        if left_out:
            notes.append(f"Not asked with every seed, and left out: {', '.join(left_out)} of {folder.parent.name}.")
    seeds = [_common({setting: rows[setting] for setting in settings}, folder, notes) for folder, rows in answered.items()]
    return TaskResults(name, options[0], [rows for rows in seeds if rows], _memories(folders), notes)


def _options(file: Path) -> dict[str, Any]:
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not the options of an evaluation: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{file} is not the options of an evaluation: expected an object, got {options!r:.80}")
    return options


def _check_alike(first: Path, options: Mapping[str, Any], folder: Path, other: Mapping[str, Any]) -> None:
    names = [name for name in {**options, **other} if name != "seed" and options.get(name) != other.get(name)]
    if names:
        raise ValueError(
            f"{first} and {folder} are not of one evaluation: they differ in the options {', '.join(names)}; seeds are "
            "combined only if nothing but the seed differs"
        )


def _rows(folder: Path, notes: list[str]) -> dict[str, list[Row]]:
    """The rows by setting, in the order of settings; nothing of a setting that has none."""
    settings = in_order([file.stem for file in folder.glob("*.jsonl")])
    rows = {setting: _read(folder / f"{setting}.jsonl", notes) for setting in settings}
    empty = [setting for setting, several in rows.items() if not several]
    if empty:
        notes.append(f"Nothing was answered yet: {', '.join(empty)} of {folder.name}.")
    return {setting: several for setting, several in rows.items() if several}


def _read(file: Path, notes: list[str]) -> list[Row]:
    lines, rest = whole_lines(file)
    if rest:
        notes.append(f"The last line of {file.parent.name}/{file.name} is truncated and was left out.")
    return [_row(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not an answer of an evaluation: {error}; remove the file and ask again") from error
    if not isinstance(row, dict) or "index" not in row:
        raise ValueError(f'{where} is not an answer of an evaluation: expected {{"index", ...}}, got {line!r:.80}')
    return row


def _in_all(parts: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings that occur in all parts, in the first part's order."""
    first, *others = parts or [{}]
    return [setting for setting in first if all(setting in other for other in others)]


def _common(rows: Mapping[str, list[Row]], folder: Path, notes: list[str]) -> dict[str, list[Row]]:
    """Keep the rows of questions that were answered under all settings."""
    by_index = {setting: {row["index"]: row for row in several} for setting, several in rows.items()}
    order = [*dict.fromkeys(index for several in by_index.values() for index in several)]
    common = [index for index in order if all(index in several for several in by_index.values())]
    if len(common) < len(order):
        counts = ", ".join(f"{setting} {len(several)}" for setting, several in by_index.items())
        notes.append(
            f"{len(common)} of {len(order)} questions were answered under all settings and count ({folder.name}: {counts})."
        )
    return {setting: [several[index] for index in common] for setting, several in by_index.items()} if common else {}


def _memories(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The memories of the first seed that has any."""
    for folder in folders:
        found = {place.name: sorted(place.glob("*.safetensors")) for place in sorted(folder.glob(f"{MEMORIES}/*"))}
        if any(found.values()):
            return {key: files for key, files in found.items() if files}
    return {}

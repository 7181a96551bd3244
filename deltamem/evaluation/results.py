"""Rows of an evaluation, saved to files so that an interrupted run can resume."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltamem.evaluation.task import Row
from deltamem.io.files import check_regular, write_atomically
from deltamem.io.json_lines import whole_lines

# In a task's folder: the file of options that its results depend on, and the folder of saved memories.
OPTIONS, MEMORIES = "options.json", "memory"
SEED_FOLDER = "seed-{}"  # with several seeds, each has its own folder of tasks


class Results:
    """The rows of one task under one setting, in the order asked.

    Args:
        file: JSON Lines, one row per line. Existing rows are loaded, except for a truncated last line. None keeps rows in
            memory only.

    Raises:
        ValueError: the file is not a results file.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.rows: list[Row] = []
        if file is not None and file.exists():
            check_regular(file)
            self.rows = [_row(line, f"{file}, line {number}") for number, line in enumerate(whole_lines(file)[0], 1)]

    def keep(self, count: int) -> None:
        """Drop all but the first `count` rows."""
        self.rows = self.rows[:count]
        if self.file is not None:
            write_atomically(self.file, "".join(map(_line, self.rows)).encode())

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; they are on disk when this returns."""
        self.rows += rows
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, rows)))
                file.flush()
                os.fsync(file.fileno())


def open_results(folder: Path | None, settings: Sequence[str], identity: Mapping[str, Any]) -> dict[str, Results]:
    """Open one task's results by setting, in a folder that records the options they depend on.

    Raises:
        ValueError: the folder holds results of other options; the message names them.
    """
    if folder is None:
        return {setting: Results() for setting in settings}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / OPTIONS
    if not file.exists():
        file.write_text(json.dumps(identity, indent=2), encoding="utf-8")
    before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(identity))
    other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if other:
        was = ", ".join(f"{name}={before.get(name)!r}" for name in other)
        raise ValueError(f"{folder} has results with {was}; give the same options to continue, or another --output")
    return {setting: Results(folder / f"{setting}.jsonl") for setting in settings}


def _row(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{place} is not a row of an evaluation; give another --output, or delete the file to ask again")
    return row


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"

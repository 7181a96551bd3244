"""The results of a study: one JSON line per run, in a file that several processes may append to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deltamem.io.files import check_regular
from deltamem.io.json_lines import whole_lines

Record = dict[str, Any]


class Results:
    """The file `runs.jsonl` in a study's folder.

    Args:
        folder: created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "runs.jsonl"

    def drop_half_written(self) -> None:
        """Remove a truncated last line left by a killed process.

        Raises:
            ValueError: the path is not a regular file.
        """
        if not self.path.exists():
            return
        check_regular(self.path)
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)

    def read(self) -> list[Record]:
        """Read all finished runs, in the order they ended; a truncated last line is ignored.

        Raises:
            ValueError: another line is not a run; the message gives its number.
        """
        if not self.path.exists():
            return []
        return [self._parsed(line, number) for number, line in enumerate(whole_lines(self.path)[0], 1)]

    def append(self, record: Record) -> None:
        """Append a run in a single write, so that lines of several processes do not mix."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(record).encode() + b"\n")
            os.fsync(file.fileno())

    def _parsed(self, line: str, number: int) -> Record:
        try:
            record: Record = json.loads(line)
            if {"run", "figures"} <= record.keys():
                return record
        except (json.JSONDecodeError, AttributeError):
            pass
        raise ValueError(f"{self.path}, line {number} is not a run of a study: {line!r:.80}; remove the line")

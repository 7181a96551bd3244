"""Reads the records of a data set: a file, a folder of files, or a data set on the Hub."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deltamem.training.given import Given

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def read_records(source: str, split: str = "train", config: str | None = None) -> list[Given]:
    """Read all records of a data set as a list; see `records_of`."""
    return [*records_of(source, split, config)]


def records_of(source: str, split: str = "train", config: str | None = None) -> Iterator[Given]:
    """Read the records of a data set one after another; each knows its file and its line, or its number.

    Args:
        source: a file of JSON Lines, or of one JSON list (or a mapping with one under "data" or "Data"), optionally gzipped; a
            folder of such files, read in order of name; or the name of a data set on the Hub.
        split, config: which part of a data set on the Hub to load.

    Raises:
        ValueError: there is no such source, or a file is not JSON; the message names the line.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
        records: Iterator[Given] = (record for file in files for record in _of_file(file))
    elif path.is_file():
        records = _of_file(path)
    elif source.endswith(ENDINGS):  # do not ask the Hub, which is slow to fail without a network
        raise ValueError(f"there is no file {source}")
    else:
        records = _numbered(source, _of_hub(source, split, config))
    first = next(records, None)
    if first is None:
        raise ValueError(f"{source} has no records; a folder is searched for files that end in {', '.join(ENDINGS)}")
    yield first
    yield from records


def _numbered(source: str, records: Iterable[Any]) -> Iterator[Given]:
    return (Given(record, f"{source}, record {number}") for number, record in enumerate(records, 1))


def _of_file(path: Path) -> Iterator[Given]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.name.endswith(".gz") else path.open(encoding="utf-8") as file:
            if path.name.removesuffix(".gz").endswith(".json"):
                yield from _numbered(str(path), _of_document(path, file.read()))
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{path}, line {number}"
                    yield Given(_parsed(line, place), place)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read; give JSON in UTF-8, gzipped if the name ends in .gz: {error}") from error


def _of_document(path: Path, text: str) -> list[Any]:
    document = _parsed(text, str(path))
    records = document.get("data", document.get("Data")) if isinstance(document, dict) else document
    if not isinstance(records, list):
        raise ValueError(f'{path} is neither a JSON list of records nor a mapping with one under "data"')
    return records


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers with too many digits, and lists nested too deeply
        raise ValueError(f"{place} is no JSON: {error}") from error


def _of_hub(name: str, split: str, config: str | None) -> Iterator[Any]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{name} is no file and no folder; to read it as a data set from the Hub, run: pip install 'deltamem[train]'"
        ) from error
    try:
        return iter([*datasets.load_dataset(name, config, split=split)])
    except Exception as error:  # no network, no such data set, a wrong split: datasets raises many types
        raise ValueError(
            f"{name} is no file and no folder, and cannot be loaded from the Hub as a data set: {error}"
        ) from error

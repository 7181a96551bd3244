"""Recommended films: their names, and the recall of a list of recommendations."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from deltamem.evaluation.extras import needs

FILE = "entity2id.json"
PARENTHESES = re.compile(r"\([^()]*\)")
ITEM_NUMBER = re.compile(r"\d+[.)、]?\s*[-—–]?\s*")


class Films:
    """The names of films by their numbers.

    Args:
        file: the data set's mapping of names to numbers; names look like paths, with the year in parentheses.

    Raises:
        ValueError: the file is missing or malformed, or the package rapidfuzz is missing.
    """

    def __init__(self, file: Path) -> None:
        self._fuzz = needs("rapidfuzz")
        try:
            numbers = json.loads(file.read_text(encoding="utf-8"))
            self._names = {int(number): _plain(name) for name, number in numbers.items()}
        except (OSError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(
                f"recsys_redial needs its data: {file}, a JSON mapping of films to numbers, from the data set's page on the "
                f"Hub ({error!r})"
            ) from error
        self._by_lower = {name.lower(): name for name in reversed(self._names.values())}

    def names(self, numbers: Sequence[str]) -> tuple[str, ...]:
        """Look up films by number.

        Raises:
            ValueError: a film does not exist.
        """
        try:
            return tuple(self._names[int(number)] for number in numbers)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{FILE} has no film {error}, which is an answer; take both files from one data set") from error

    def recall(self, prediction: str, golds: Sequence[str], most: int = 5) -> float:
        """The share of the wanted films among the first recommendations, as published.

        Every line, even an empty one, counts as the film with the nearest name by edit distance.

        Args:
            prediction: a list, either numbered from "1." on or separated by commas.
            golds: the names of the wanted films.
            most: how many entries of the list count.
        """
        _, one, rest = prediction.partition("1.")
        lines = (rest if one else prediction.replace(",", "\n")).split("\n")
        told = {self._nearest(_item(line)) for line in lines[:most]}
        return sum(gold in told for gold in golds) / len(golds)

    def _nearest(self, name: str) -> str:
        distance = self._fuzz.distance.Levenshtein.distance
        nearest, _, _ = self._fuzz.process.extractOne(name.lower(), self._by_lower.keys(), scorer=distance)
        return self._by_lower[nearest]


def _plain(name: str) -> str:
    """Strip a film's name of its path and year."""
    return _spaced(PARENTHESES.sub("", re.sub(r"[_>-]", " ", name.rsplit("/", 1)[-1])))


def _item(line: str) -> str:
    """Strip a list entry of its number and of text in parentheses."""
    plain = PARENTHESES.sub("", line.strip())
    number = ITEM_NUMBER.match(plain)
    return _spaced(plain[number.end() :] if number else plain)


def _spaced(text: str) -> str:
    return " ".join(text.split())

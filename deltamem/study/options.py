"""Validates a grid's YAML: the names, and the types of values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

Options = dict[str, Any]


def mapping(place: str, given: Any) -> Options:
    """Return a mapping of names to values; None counts as an empty one.

    Raises:
        ValueError: it is anything else.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{place}: {given!r} is not accepted; give names with their values")
    return dict(given or {})


def check_names(place: str, given: Collection[str], known: Collection[str]) -> None:
    """Check that all names are known.

    Raises:
        ValueError: a name is unknown; the message lists the known ones.
    """
    for name in given:
        if name not in known:
            raise ValueError(f"{place} has no {name!r}; there are: {', '.join(known)}")


def check_types(place: str, given: Options, made: type) -> None:
    """Check that values have the types of a dataclass's defaults, where these are plain.

    Raises:
        ValueError: a value has another type.
    """
    for field in fields(made):
        value, default = given.get(field.name), field.default
        if field.name not in given or not isinstance(default, bool | int | float | str):
            continue
        expected = type(default)
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise ValueError(
                f"{place}.{field.name}: {value!r} is not accepted; give a {expected.__name__}, such as {default!r}"
            )


def field_names(*made: type) -> list[str]:
    """The names of the arguments that dataclasses are created with."""
    return [field.name for each in made for field in fields(each) if field.init]

"""Packages that only evaluation needs."""

from __future__ import annotations

import importlib
from types import ModuleType


def needs(module: str) -> ModuleType:
    """A module of a package of the extra `eval`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this evaluation needs the package {module.split('.')[0]}; run: pip install 'deltamem[eval]'"
        ) from error

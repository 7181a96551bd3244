"""Optional packages that only evaluation needs."""

from __future__ import annotations

import importlib
from types import ModuleType


def needs(module: str) -> ModuleType:
    """Import a module from a package of the `eval` extra.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this evaluation needs the package {module.split('.')[0]}; run: pip install 'deltamem[eval]'"
        ) from error

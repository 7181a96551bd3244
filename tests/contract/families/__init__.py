"""The cases of the contract, one file per group of families: a mapping `FAMILIES` from model types to cases."""

from importlib import import_module
from pathlib import Path

from family import Family

FAMILIES: dict[str, Family] = {}
for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    FAMILIES |= import_module(f"families.{path.stem}").FAMILIES

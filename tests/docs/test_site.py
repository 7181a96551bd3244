"""The site builds without a warning, and its reference has every public name."""

import ast
import importlib
import pkgutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, get_origin

from doc_pages import ROOT

# Packages whose own names are public, and packages whose modules' names are.
PUBLIC = ("deltamem", "deltamem.rule", "deltamem.convert", "deltamem.inspection")
OF_MODULES = ("deltamem.training",)


def names_in(module: str) -> set[str]:
    """The public classes and functions of a module: those in `__all__`, or those that it defines."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        names = [name for name in loaded.__all__ if not _is_type_alias(getattr(loaded, name))]
    else:
        nodes = ast.parse(Path(loaded.__file__).read_text()).body
        names = [node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {f"{module}.{name}" for name in names if not name.startswith("_")}


def _is_type_alias(value: Any) -> bool:
    return get_origin(value) is not None


def public_names() -> set[str]:
    modules = [
        module.name
        for package in OF_MODULES
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
    ]
    return set().union(*map(names_in, (*PUBLIC, *modules)))


def documented(inventory: Path) -> set[str]:
    """The names in an inventory as Sphinx has it: four lines, then compressed `name role priority address text`."""
    lines = zlib.decompress(inventory.read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


def test_the_site_builds_without_a_warning_and_documents_every_public_name(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", ROOT / ".ci" / "mkdocs.yml"]
    done = subprocess.run([*command, "--site-dir", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(public_names() - documented(tmp_path / "objects.inv")) == []

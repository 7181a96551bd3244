"""The house stands on levels: a part of the library imports only parts below it."""

import ast
from pathlib import Path

import pytest

import deltamem

ROOT = Path(deltamem.__file__).parent
# From the ground. What stands in one line does not import its neighbours.
LEVELS = (
    ("rule", "hook", "io", "intervals", "versions", "workload"),
    ("config", "memory", "html", "store"),
    ("adapter",),
    ("backbones", "forward", "hub"),
    ("layer", "convert"),
    ("model",),
    ("chat",),
    ("__init__", "training"),
    ("inspection",),
    ("evaluation", "serve"),
    ("vllm",),
    ("study", "benchmark"),
    ("cli",),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}


def imports(source: str) -> set[str]:
    """The parts of the library that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module} if node.module != "deltamem" else {f"deltamem.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("deltamem.")}


def upwards(part: str, source: str) -> set[str]:
    return {other for other in imports(source) if other != part and LEVEL[other] >= LEVEL[part]}


def test_every_part_has_a_level():
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"registry", "adapters"} == {*LEVEL}


@pytest.mark.parametrize("part", LEVEL)
def test_imports_go_downwards(part):
    files = [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").exists() else [*(ROOT / part).rglob("*.py")]
    assert files
    assert {path.name: found for path in files if (found := upwards(part, path.read_text()))} == {}


def test_an_import_upwards_is_seen():
    assert upwards("rule", "from deltamem.model import DeltaMemModel") == {"model"}
    assert upwards("config", "def f():\n    import deltamem.hub.card") == {"hub"}
    assert upwards("memory", "from deltamem import config") == {"config"}
    assert upwards("model", "from deltamem.config import DeltaMemConfig") == set()

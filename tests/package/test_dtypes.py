"""Nothing depends on torch's default dtype or device: every tensor that the library makes names its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[2] / "deltamem"
# Functions of torch that fall back on the default device, and those that fall back on the default dtype, too.
WHERE = {"arange", "randint", "randperm"}
WHERE_AND_WHAT = {"as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}


def unnamed(source: str) -> Iterator[str]:
    """The calls in a source that leave the dtype or the device to torch."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            continue
        name, given = node.func.attr, {keyword.arg for keyword in node.keywords}
        needed = {"dtype", "device"} if name in WHERE_AND_WHAT else {"device"} if name in WHERE else set()
        if None not in given and needed - given:
            yield f"line {node.lineno}: torch.{name}(...) names no {' and no '.join(sorted(needed - given))}"


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_every_new_tensor_names_its_dtype_and_device(path: Path) -> None:
    assert not [*unnamed(path.read_text())]


def test_a_tensor_that_names_none_is_seen() -> None:
    assert [*unnamed("torch.zeros(3, device='cpu')")] == ["line 1: torch.zeros(...) names no dtype"]
    assert len([*unnamed("torch.arange(3)\ntorch.tensor([1.0])\ntorch.zeros(2, dtype=d, device=e)")]) == 2

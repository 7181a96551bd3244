"""What gets installed."""

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import metadata, requires
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from packaging.requirements import Requirement

import deltamem

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_all_files_of_the_library_and_nothing_else(tmp_path):
    source = copytree(ROOT, tmp_path / "source", ignore=ignore_patterns(".*", "build", "*.egg-info", "tests", "runs"))
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([*wheel, source], check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    places = {
        "deltamem": "deltamem",
        "registry": "deltamem/registry",
        "adapters": "deltamem/adapters",
        "deltamem_cli": "deltamem_cli",
        "deltamem_vllm": "deltamem_vllm",
    }
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith("deltamem-0")} == expected
    assert {"deltamem/py.typed", "deltamem/registry/llama.py", "deltamem/training/facts/attributes.json"} <= expected


def test_the_lower_bounds_are_the_versions_that_are_tested():
    """Those of the library and of its extra `cpu`, with the versions that `.ci/oldest` installs."""
    tested = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / ".ci/constraints-oldest.txt").read_text(), re.MULTILINE))
    required = [Requirement(text) for text in requires("deltamem")]
    bounds = {one.name: one.specifier for one in required if one.marker is None or one.marker.evaluate({"extra": "cpu"})}
    assert len(bounds) > 10
    assert {name: f"=={tested.get(name)}" for name in bounds} == {
        name: next(f"=={one.version}" for one in bound if one.operator == ">=") for name, bound in bounds.items()
    }


def test_the_extras_that_messages_name_exist():
    named = {
        extra for path in (ROOT / "deltamem").rglob("*.py") for extra in re.findall(r"'deltamem\[(\w+)\]'", path.read_text())
    }
    assert len(named) > 3
    assert named <= {*metadata("deltamem").get_all("Provides-Extra")}


def test_an_extra_is_added_to_the_installed_library():
    """Not looked for elsewhere: `pip install 'deltamem[cpu]'` works from a clone and from a wheel."""
    install = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "deltamem[cpu]"]
    subprocess.run(install, check=True, capture_output=True)


def test_the_public_interface_is_there():
    assert all(hasattr(deltamem, name) for name in deltamem.__all__)


# What could run what a file says, as `names_in` gives it.
UNSAFE = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy"}
UNSAFE |= {
    "torch.load",
    "torch.serialization",
    "numpy.load",
    "np.load",
    "pandas.read_pickle",
    "eval",
    "exec",
    "compile",
    "__import__",
}


def names_in(source):
    """The modules that Python source imports, what it imports from them, and all names and dotted names in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Name | ast.Attribute):
            names.add(ast.unparse(node))
    return names


def unsafe_in(source):
    return {name for name in names_in(source) if name in UNSAFE or name.split(".")[0] in UNSAFE}


def test_nothing_runs_what_a_file_says():
    sources = [path for folder in ("deltamem", "deltamem_cli", "registry") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 20
    unsafe = {str(path.relative_to(ROOT)): found for path in sources if (found := unsafe_in(path.read_text()))}
    # The authors' adapters are pickles: read as tensors alone, on request alone.
    assert unsafe == {"deltamem/convert/folders.py": {"torch.load"}}
    assert "weights_only=True" in (ROOT / "deltamem/convert/folders.py").read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, joblib as j",
        "import dill.session",
        "from pickle import loads",
        "from torch import load",
        "from torch.serialization import load",
        "torch.load(path)",
        "read = torch.load",
        "np.load(path, allow_pickle=True)",
        "import shelve\nshelve.open(path)",
        "eval('1')",
        "exec(text)",
        "map(eval, texts)",
        "__import__('os')",
    ],
)
def test_what_runs_files_would_be_found(source):
    assert unsafe_in(source)
    assert not unsafe_in("import json\nmodel.eval()\nre.compile('a')\ntorch.compile(model)\nstate.load(path)")

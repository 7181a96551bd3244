"""What gets installed."""

import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import deltamem

ROOT = Path(__file__).parent.parent


def test_the_wheel_adds_one_import_name(tmp_path):
    source = copytree(ROOT, tmp_path / "source", ignore=ignore_patterns(".*", "build", "*.egg-info", "tests", "runs"))
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([*wheel, source], check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"deltamem"}
    assert {"deltamem/py.typed", "deltamem/registry/llama.py", "deltamem/training/facts.json"} <= {*names}
    adapters = {name for name in names if name.startswith("deltamem/adapters/")}
    assert any(name.endswith("/adapter_model.safetensors") for name in adapters)


def test_the_public_interface_is_there():
    assert all(hasattr(deltamem, name) for name in deltamem.__all__)


def test_no_pickles():
    sources = [path for folder in ("deltamem", "registry") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in sources if "torch.load" in path.read_text() or "import pickle" in path.read_text()]

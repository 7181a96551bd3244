"""docs/upstream.md proposes a patch of peft: it applies to the version that the page names, and does what the page says."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import copyfile, copytree

import peft
import pytest
from doc_pages import ROOT, blocks_of
from tiny import tiny_adapted, tiny_backbone
from transformers import AutoModelForCausalLM

VERSION = "0.21.2"
PAGE, PATCH = ROOT / "docs" / "upstream.md", ROOT / "docs" / "upstream" / "methods-from-other-packages.patch"
PATCHED = ("mapping.py", "utils/peft_types.py")
LOAD = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM

backbone = AutoModelForCausalLM.from_pretrained("backbone")
assert "deltamem" not in sys.modules
print(type(PeftModel.from_pretrained(backbone, "adapter").base_model).__name__)
"""

pytestmark = pytest.mark.skipif(peft.__version__ != VERSION, reason=f"the patch is for peft {VERSION}, not {peft.__version__}")


@pytest.fixture
def sources(tmp_path) -> Path:
    """A folder with the patched files of the installed peft, at their places in its repository, and links to the others."""
    installed, copy = Path(peft.__file__).parent, tmp_path / "src" / "peft"
    copytree(installed, copy, copy_function=os.symlink)
    for name in PATCHED:
        (copy / name).unlink()
        copyfile(installed / name, copy / name)
    return tmp_path


def apply(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "apply", PATCH], cwd=folder, capture_output=True, text=True, check=False)


def test_it_applies(sources):
    done = apply(sources)
    assert done.returncode == 0, done.stderr
    assert apply(sources).returncode != 0, "a file that differs is accepted"


def test_an_adapter_loads_without_the_import(sources):
    apply(sources)
    package = sources / "site" / "with_entry_point-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: with-entry-point\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[peft.methods]\nDELTA_MEM = deltamem\n")
    tiny_backbone().save_pretrained(sources / "backbone")
    tiny_adapted(backbone=AutoModelForCausalLM.from_pretrained(sources / "backbone")).save_pretrained(sources / "adapter")
    path = [str(sources / "src"), str(package.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", LOAD]
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "DeltaMemModel", done.stderr


def test_the_page_shows_lines_of_the_patch():
    added = {line[1:].strip() for line in PATCH.read_text().splitlines() if line.startswith("+")}
    shown = [line.strip() for block in blocks_of(PAGE) if block.language == "py" for line in block.code.splitlines()]
    assert len(shown) > 10
    assert [line for line in shown if line not in added] == []

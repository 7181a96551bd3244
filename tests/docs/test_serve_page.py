"""The examples of docs/serve.md: its requests and its Python code run, in order, with a server of a tiny model."""

import re
import shutil
import subprocess
import sys

import pytest
from doc_pages import ROOT, blocks_of
from served import serving

PAGE = ROOT / "docs" / "serve.md"
URL, MODEL = "http://127.0.0.1:8000", "SmolLM2-135M-Instruct"
# Blocks that start servers or install packages; tests/docs/test_commands.py reads them.
OURS = re.compile(r"^(deltamem|pip) .*\n?", re.MULTILINE)
PACKAGES = {"langchain_openai": "langchain-openai"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("store") / "memories.db", journal=True) as served:
        yield served


def local(code, served):
    assert MODEL in code or "/v1/" in code
    return code.replace(URL, served.url).replace(MODEL, "tiny")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_requests(served, tmp_path):
    script = 'set -e\ncurl() { command curl --fail-with-body "$@"; echo; }\n'
    blocks = [OURS.sub("", block.code) for block in blocks_of(PAGE) if block.language == "sh"]
    requests = [local(code, served) for code in blocks if "curl" in code]
    assert len(requests) > 5
    path = f"PATH='{tmp_path}':$PATH\n"  # `python3` is this one
    (tmp_path / "python3").symlink_to(sys.executable)
    done = subprocess.run(["sh", "-c", script + path + "\n".join(requests)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with served.client() as client:
        names = [one["id"] for one in client.get("/v1/memories").json()["data"]]
        said = [one["content"] for one in client.get("/v1/memories/anna/messages").json()["data"]]
    assert names == ["anna", "anna-copy", "anna-trial"]
    assert "What is my favourite colour?" in said
    assert "My favourite colour is teal." not in said


def test_the_clients(served, capsys):
    blocks = [block for block in blocks_of(PAGE) if block.language == "python"]
    assert {block.not_run for block in blocks} == {"here, but by tests/docs/test_serve_page.py, with a server"}
    namespace = {"__name__": "__main__"}
    for block in blocks:
        for module, package in PACKAGES.items():
            if f"from {module} import" in block.code:
                pytest.importorskip(module, reason=f"{package} is not installed; run: pip install {package}")
        exec(compile("\n" * (block.line - 1) + local(block.code, served), str(PAGE), "exec"), namespace)
    assert len(namespace["answers"]) == 3
    with served.client() as client:
        said = {name: client.get(f"/v1/memories/{name}/messages").json()["data"] for name in ("bob", "carol")}
    assert "Bob lives in Oslo." in [one["content"] for one in said["bob"]]
    assert [one["role"] for one in said["carol"]] == ["user", "assistant"]

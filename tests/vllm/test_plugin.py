"""With the plug-in and no adapter, vLLM's outputs are its own, bit for bit; so are those of requests without a memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm installs it")

from vllm_engine import save, strong

from deltamem.vllm import engine_options

CHILD = Path(__file__).parent.parent / "support" / "vllm_child.py"


def answers(options, plugins=None):
    """What vLLM answers, with all plug-ins or with those of these names."""
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parent), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    command = [sys.executable, str(CHILD), json.dumps(options)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def test_outputs_without_a_memory_are_those_of_vllm(tmp_path):
    backbone, adapter = save(tmp_path, strong("llama"))
    own = answers({"model": str(backbone)}, plugins="none")
    assert answers({"model": str(backbone)}) == own
    assert answers(engine_options(adapter, str(backbone), store=f"files:{tmp_path}")) == own

"""Two ranks share the corrections of a layer, and each has the whole memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm installs it")

CHILD = Path(__file__).parent.parent / "support" / "vllm_ranks.py"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks need two cores")
def test_two_ranks_answer_and_remember_as_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parent)}
    command = [sys.executable, str(CHILD), "2", str(tmp_path)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [line.split()[1:] for line in child.stdout.splitlines() if line.startswith("RANKS")]
    assert found == [[write, "True"] for write in ("after", "during", "False", "prompt", "after")], child.stderr[-3000:]

"""What is sent to the Hub is what is loaded from it, through huggingface_hub and a server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, hub_server
from huggingface_hub import ModelCard

SCRIPT = Path(__file__).with_name("push_and_load.py")


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hub, Path, dict[str, Any]]:
    """The server after `push_and_load.py`, the folder of the adapter, and what that printed."""
    root = tmp_path_factory.mktemp("pushed")
    with hub_server() as hub:
        # huggingface_hub reads them when it is imported, so this needs a process of its own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))} | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(root / "home"),
            "HF_TOKEN": "hf_of_nobody",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(SCRIPT.parent.parent),
        }
        run = subprocess.run([sys.executable, SCRIPT, root / "mine"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.stderr}\n{hub.requests}"
    return hub, root / "mine", json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["PeftModel", "AutoPeftModel", "branch", "AutoModel", "pipeline", "load_adapter"])
def test_what_was_sent_is_loaded(pushed: tuple[Hub, Path, dict[str, Any]], way: str) -> None:
    assert pushed[2][way] is True

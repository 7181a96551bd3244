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
Pushed = tuple[Hub, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Pushed:
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
            "PYTHONPATH": str(SCRIPT.parents[1] / "support"),
        }
        run = subprocess.run([sys.executable, SCRIPT, root / "mine"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.stderr}\n{hub.requests}"
    return hub, root / "mine", json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["PeftModel", "AutoPeftModel", "branch", "AutoModel", "pipeline", "load_adapter", "trained"])
def test_what_was_sent_is_loaded(pushed: Pushed, way: str) -> None:
    assert pushed[2][way] is True


def test_the_command_says_where_it_went(pushed: Pushed) -> None:
    hub, _, found = pushed
    repo = hub.repos["someone/by-command"]
    assert found["pushed"]["status"] == 0
    assert found["pushed"]["output"] == f"{hub.url}/someone/by-command/commit/{repo.branches['main']}\n"


def test_a_dry_run_says_what_a_push_sends(pushed: Pushed) -> None:
    hub, folder, found = pushed
    shown = found["dry run"]["output"]
    assert found["dry run"]["status"] == 0
    assert "someone/not-sent" not in hub.repos
    sent = {name: content for name, content in hub.repos["someone/by-command"].at("main").items() if name != ".gitattributes"}
    assert {name: content for name, content in sent.items() if name != "README.md"} == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"
    }
    assert sent["README.md"].decode().replace("by-command", "not-sent") in shown
    for name, content in sent.items():
        size = len(content) - (2 if name == "README.md" else 0)
        assert f"{size:>13,}  {name}\n" in shown


def test_the_model_sends_its_own_card(pushed: Pushed) -> None:
    """transformers' push_to_hub would send one of a transformers model."""
    hub, *_ = pushed
    card = ModelCard(hub.repos["someone/by-model"].at("main")["README.md"].decode())
    assert card.data.library_name == "peft"
    assert card.data.base_model == "someone/tiny"
    assert {"delta-mem", "memory", "base_model:adapter:someone/tiny"} <= {*card.data.tags}
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("someone/tiny"), "someone/by-model")' in card.text


def test_a_training_sends_a_complete_card(pushed: Pushed) -> None:
    """The Trainer's push_to_hub would send one of its own."""
    hub, *_ = pushed
    card = ModelCard(hub.repos["someone/trained"].at("main")["README.md"].decode())
    assert card.data.base_model == "someone/tiny"
    assert "Data: generated facts." in card.text
    assert "deltamem train --model someone/tiny --output_dir" in card.text
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("someone/tiny"), "someone/trained")' in card.text


def test_other_models_send_what_they_always_did(pushed: Pushed) -> None:
    hub, *_ = pushed
    assert ModelCard(hub.repos["someone/tiny"].at("main")["README.md"].decode()).data.library_name == "transformers"


def test_private_is_private_or_nothing_is_sent(pushed: Pushed) -> None:
    hub, _, found = pushed
    assert hub.repos["someone/secret"].private
    assert not hub.repos["someone/by-command"].private
    assert found["private"]["status"] == 0
    assert found["public already"]["status"] == 2
    assert "exists already and is public" in found["public already"]["errors"]
    assert len(hub.repos["someone/by-command"].commits) == 2

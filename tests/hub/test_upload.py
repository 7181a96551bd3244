"""What `deltamem push` refuses, before anything is sent."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_backbone
from typer.testing import CliRunner

from deltamem.hub.upload import prepare
from deltamem_cli import app


@pytest.fixture(autouse=True)
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks the Hub for anything fails the test."""

    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(HfApi, "create_repo", ask)


def push(folder: Path, repo: str = "someone/mine") -> str:
    result = CliRunner().invoke(app, ["push", str(folder), repo])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


def change_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_that_is_no_adapter(tmp_path: Path) -> None:
    assert "holds no PEFT adapter: it has no adapter_config.json" in push(tmp_path)
    assert "there is no folder" in push(tmp_path / "elsewhere")
    (tmp_path / "adapter_config.json").write_text("{")
    assert "adapter_config.json' is not JSON" in push(tmp_path)


def test_another_methods_adapter(tmp_path: Path) -> None:
    get_peft_model(tiny_backbone(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "holds an adapter of the method 'LORA', which has no memory" in push(tmp_path)


def test_a_config_that_is_not_accepted(adapter: Path) -> None:
    change_config(adapter, r="8")
    assert "r='8' is not accepted" in push(adapter)


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "scheduler.pkl", "model.ckpt", "weights"])
def test_what_could_be_a_pickle(adapter: Path, name: str) -> None:
    (adapter / name).write_bytes(pickle.dumps({}))
    assert f"has {name}: such a file could be a pickle" in push(adapter)


def test_weights_that_are_a_pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(pickle.dumps({}))
    assert "adapter_model.safetensors' is not a readable safetensors file" in push(adapter)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(adapter: Path, number: float) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: torch.full_like(weights[name], number)}, file)
    assert "has NaN or infinite values" in push(adapter)


def test_weights_of_something_else(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.lm_head.weight": torch.zeros(3, 3)}, file)
    assert "does not have the weights of its adapter_config.json: see base_model.model.lm_head.weight" in push(adapter)


def test_weights_of_another_width(adapter: Path) -> None:
    change_config(adapter, r=8)
    assert "does not have the weights of its adapter_config.json: see" in push(adapter)


def test_no_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert "holds no PEFT adapter: it has no adapter_model.safetensors" in push(adapter)


@pytest.mark.parametrize("backbone", [None, "/models/mine", "a folder/of mine"])
def test_a_backbone_that_nobody_finds(adapter: Path, backbone: str | None) -> None:
    change_config(adapter, base_model_name_or_path=backbone)
    assert "is not a name on the Hub" in push(adapter)


@pytest.mark.parametrize("repo", ["mine", "some one/mine", "../mine", "a/b/c"])
def test_a_name_that_is_no_repository(adapter: Path, repo: str) -> None:
    assert repo in push(adapter, repo)


def test_hidden_files_and_folders_stay_here(adapter: Path) -> None:
    (adapter / ".env").write_text("HF_TOKEN=secret")
    shutil.copytree(adapter, adapter / "checkpoint-3")
    (adapter / "LICENSE").write_text("Apache-2.0")
    assert [*prepare(adapter, "someone/mine").contents] == [
        "LICENSE",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_nothing_in_the_folder_changes(adapter: Path) -> None:
    (adapter / "README.md").unlink()
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    sent = prepare(adapter, "someone/mine")
    assert '"someone/mine")' in sent.card
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_a_missing_licence_is_told(adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare(adapter, "someone/mine")
    assert "names no licence" in caplog.text
    readme = adapter / "README.md"
    readme.write_text(readme.read_text().replace("library_name", "license: mit\nlibrary_name", 1))
    caplog.clear()
    prepare(adapter, "someone/mine")
    assert "licence" not in caplog.text


@pytest.mark.parametrize("shipped", sorted(Path(__file__).parents[2].glob("adapters/*/adapter_config.json")))
def test_the_shipped_adapters_can_be_sent_as_they_are(shipped: Path) -> None:
    sent = prepare(shipped.parent, "someone/mine")
    assert sent.card.strip() == (shipped.parent / "README.md").read_text().strip()
    card = ModelCard(sent.card)
    assert card.data.license
    assert card.data.eval_results
    assert card.text.split("```python\n")[1].startswith("import deltamem")

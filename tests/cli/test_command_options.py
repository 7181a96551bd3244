"""`--dtype` and `--device` of every command that loads a backbone by itself: refused before anything is read."""

import importlib.util
from dataclasses import dataclass

import pytest
import torch
from tiny import tiny_backbone
from tiny_chat import chat_tokenizer
from typer.testing import CliRunner

from deltamem.backbones import Placement
from deltamem_cli import app
from deltamem_cli.common import options_from

COMMANDS = {
    "demo": ["demo"],
    "chat": ["chat"],
    "eval": ["eval", "facts"],
    "bench": ["bench"],
    "inspect": ["inspect", "nowhere"],
    "study": ["study", "nowhere.yaml"],
}


@pytest.mark.parametrize("option", [["--dtype", "float8"], ["--device", "nowhere"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_there_is_not_is_refused(command, option):
    result = CliRunner().invoke(app, [*COMMANDS[command], *option])
    assert result.exit_code == 2, result.output
    assert f"{option[0]} {option[1]!r}" in result.stderr


def test_a_backbone_has_the_dtype(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    found = [Placement(dtype).load(str(tmp_path))[0].dtype for dtype in ("float32", "bfloat16")]
    assert found == [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Library:
    """Options of a library, some of which a command has."""

    limit: int | None = None
    facts: tuple[int, ...] = (1, 4)
    greedy: bool = False
    internal: str = "kept"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"limit": 3, "facts": [2], "greedy": True, "as_json": True}, Library(3, (2,), True)),
        ({"limit": None, "facts": None, "greedy": False}, Library()),
        ({"limit": 0, "facts": []}, Library(0)),
    ],
)
def test_a_command_gives_its_parameters_to_the_library(given, expected):
    assert options_from(given, Library) == expected


@pytest.mark.parametrize("command", ["bench --model", "chat", "eval facts --model", "train --output_dir out --use_cpu --model"])
@pytest.mark.parametrize("name", ["./nowhere", "nobody/nothing"])
def test_a_backbone_that_there_is_not_is_named(command, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*command.split(), name])
    assert result.exit_code == 2, result.output
    assert f"there is no backbone {name!r}" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "other"], "choose transformers or vllm"),
        (["--engine", "vllm", "--write", "during"], "--write during is not accepted with --engine vllm"),
        (["--engine", "vllm", "--device", "cuda"], "--device cuda is not accepted with --engine vllm"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(options, message):
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == 2, result.output
    assert message in result.stderr


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_that_is_not_installed_is_refused():
    result = CliRunner().invoke(app, ["serve", "--engine", "vllm"])
    assert result.exit_code == 2, result.output
    assert "--engine vllm needs vLLM" in result.stderr

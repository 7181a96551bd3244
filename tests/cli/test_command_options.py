"""`--dtype` and `--device` of every command that loads a backbone by itself: refused before anything is read."""

import pytest
import torch
from tiny import tiny_backbone
from tiny_chat import chat_tokenizer
from typer.testing import CliRunner

from deltamem.backbones import Placement
from deltamem_cli import app

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

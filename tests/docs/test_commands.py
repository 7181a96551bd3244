"""The commands in README and the documentation are ones that there are, with options that there are; none is run."""

import re
import shlex
import subprocess
from dataclasses import fields

import pytest
import typer
from doc_pages import PAGES, ROOT, Block, blocks_of, name_of
from typer.testing import CliRunner

from deltamem.training.baselines import BASELINES
from deltamem.training.data import DataArguments
from deltamem.training.facts import FactEpisodeConfig
from deltamem.training.options import AdapterArguments, TrainingOptions
from deltamem.training.trainer import DeltaMemTrainingArguments
from deltamem_cli import app

# They start other commands in several processes.
LAUNCHERS = ("torchrun", "accelerate")
IN_REPOSITORY = re.compile(r"(tests|docs|adapters|registry|\.ci)/[\w./-]+")


def shell_blocks():
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "sh":
                yield pytest.param(block, id=f"{name_of(page)}:{block.line}")


def commands(code):
    """The words of each command, without the variables before it and the comment behind it."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in re.split(r" (?:\||&&|>) ", line):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield words


def check(name, *arguments):
    """Parse a `deltamem` command as the command itself does; raises or exits if it would not take it."""
    known = typer.main.get_command(app).commands
    if "--help" in (name, *arguments):
        assert name in ("--help", *known)
    elif name in ("train", "baseline"):
        options = arguments if name == "train" else arguments[1:]
        assert name == "train" or arguments[0] in BASELINES
        TrainingOptions.parse([*options], f"deltamem {name}", None)
    else:
        known[name].make_context(name, [*arguments])


@pytest.mark.parametrize("block", shell_blocks())
def test_a_shell_block_is_sound(block: Block, tmp_path, monkeypatch):
    subprocess.run(["sh", "-n"], input=block.code, text=True, check=True)
    monkeypatch.chdir(tmp_path)
    for words in commands(block.code):
        if words[0] in LAUNCHERS:
            words = words[words.index("deltamem") :]
        if words[0].rpartition("/")[2] == "deltamem":
            check(*words[1:])
        assert [word for word in words if IN_REPOSITORY.fullmatch(word) and not (ROOT / word).exists()] == []


def test_help_says_what_every_command_does_and_cuts_nothing_off():
    about, commands = CliRunner().invoke(app, ["--help"]).output.split("Commands:\n")
    assert "A tiny online memory" in about
    assert [line for line in commands.splitlines() if line.endswith("...")] == []


def test_every_option_of_the_training_has_a_help():
    kinds = (AdapterArguments, DataArguments, FactEpisodeConfig, DeltaMemTrainingArguments)
    assert [option.name for kind in kinds for option in fields(kind) if option.init and not option.metadata.get("help")] == []


@pytest.mark.parametrize("command", ["demo --epochs 3", "demo --episodes many", "train --no_such_option 1", "no_such_command"])
def test_a_command_that_there_is_not_would_be_found(command):
    with pytest.raises((Exception, SystemExit)):
        check(*command.split())

"""`--help` of the training commands: what matters, on two screens; `--help-all` has everything."""

import re
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from deltamem.cli import app
from deltamem.training.data import DataArguments
from deltamem.training.facts import FactEpisodeConfig
from deltamem.training.option_parser import GROUPS, WIDTH
from deltamem.training.options import AdapterArguments, RunArguments
from deltamem.training.trainer import DeltaMemTrainingArguments

TWO_SCREENS = 80
COMMANDS = (["train"], ["baseline"], ["baseline", "prefix"])
KINDS = (AdapterArguments, DataArguments, FactEpisodeConfig, DeltaMemTrainingArguments, RunArguments)


def help_of(*command):
    result = CliRunner().invoke(app, [*command])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_fits_on_two_screens(command):
    lines = help_of(*command, "--help")
    assert len(lines) <= TWO_SCREENS
    assert max(map(len, lines)) <= WIDTH
    shown = [match[1] for match in (re.match(r"  --(\w+)", line) for line in lines) if match]
    assert shown == [name for names in GROUPS.values() for name in names]
    assert any("--help-all" in line for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_whole_help_has_every_option(command):
    text = "\n".join(help_of(*command, "--help-all"))
    assert [option.name for kind in KINDS for option in fields(kind) if option.init and f"--{option.name}" not in text] == []


def test_the_help_of_a_recipe_has_its_defaults():
    assert any(re.match(r"  --learning_rate .*\[0\.004\]", line) for line in help_of("train", "--preset", "facts", "--help"))


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["--modle", "x"], "--modle is no option of deltamem train; you may mean --model"),
        (["--per-device-batch-size", "1"], "--per_device_train_batch_size"),
        (["--xyzzy"], "--xyzzy is no option of deltamem train; --help-all shows all options"),
    ],
)
def test_an_option_that_does_not_exist_is_named(given, hint):
    result = CliRunner().invoke(app, ["train", *given])
    assert result.exit_code == 2
    assert hint in result.stderr

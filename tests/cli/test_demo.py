import json

import pytest
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem.evaluation.demo import print_conversation
from deltamem.evaluation.recall import SETTINGS
from deltamem_cli import app


@pytest.fixture
def folders(tmp_path):
    """A backbone with its tokenizer, and an adapter for it."""
    tiny_backbone(eos_token_id=3).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    chat_model().save_pretrained(tmp_path / "adapter")
    return ["--model", str(tmp_path / "backbone"), "--adapter", str(tmp_path / "adapter")]


def test_the_demo_as_json(folders):
    result = CliRunner().invoke(app, ["demo", *folders, "--episodes", "3", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert {*figures["accuracy"]} == {*SETTINGS}
    assert all({*by_facts} == {"1", "4"} for by_facts in figures["accuracy"].values())
    assert figures["accuracy"]["no_memory"] == figures["accuracy"]["zero_memory"]
    assert {*figures["named"]} == {*SETTINGS}
    assert {*figures["unseen_values"]} == {*figures["unseen_named"]} == {"1", "4"}
    assert figures["chance"] == 0.1
    assert figures["memory_bytes"] == 2 * 4 * 4 * 4  # layers, rows, columns, bytes
    assert figures["kv_cache_bytes"] % (2 * 2 * 2 * 8 * 4) == 0  # keys and values, layers, heads, width, bytes
    assert [row["answer"] is None for row in figures["examples"]] == [False] * 3 + [True] * 2
    assert sum(message["role"] == "user" for message in figures["told"]) == 3 + 2  # facts, other talk
    assert {*figures["examples"][0]} == {"question", "answer", "memory", "no_memory", "shuffled_memory"}


def test_the_demo_as_tables(folders):
    result = CliRunner().invoke(app, ["demo", *folders, "--episodes", "3"])
    assert result.exit_code == 0, result.output
    for expected in (
        "right answer",
        "ranked first",
        "named",
        "with its memory",
        "with a stranger's memory",
        "The context is dropped.",
        "(unrelated)",
        "never trained on",
        "chance",
        "bytes",
    ):
        assert expected in result.output


def test_what_a_model_says_is_no_markup(capsys):
    said = {"question": "q", "answer": None, "memory": "[/b] [red]x", "no_memory": "a", "shuffled_memory": "b"}
    print_conversation({"told": [], "examples": [said], "memory_bytes": 1, "kv_cache_bytes": 1})
    assert "[/b] [red]x" in " ".join(capsys.readouterr().out.split())


def test_the_options_of_training_are_listed():
    result = CliRunner().invoke(app, ["--help"])
    assert "demo" in result.output
    assert "train" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--adapter", "/no/adapter/here"], "/no/adapter/here"),
        (["train", "--no_such_option", "1", "--output_dir", "runs"], "no_such_option"),
        (["train", "--data", "no_such_file.jsonl", "--output_dir", "runs", "--variant", "tsw", "--r", "0"], "r=0"),
    ],
)
def test_wrong_input_ends_in_one_line(arguments, message, folders):
    given = [*arguments, *folders[:2]] if arguments[0] == "train" else arguments
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output

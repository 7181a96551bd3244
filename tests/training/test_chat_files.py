"""A chat that cannot be trained on is named with its file and line, before the backbone is loaded."""

import json

import pytest
from tiny_chat import chat_tokenizer
from typer.testing import CliRunner

from deltamem.cli import app
from deltamem.training.data import DataArguments, training_chats
from deltamem.training.facts import FactEpisodeConfig
from deltamem.training.records import records_of

TOLD = [{"role": "user", "content": "Anna likes teal."}, {"role": "assistant", "content": "Noted."}]
ASKED = [{"role": "user", "content": "What does Anna like?"}, {"role": "assistant", "content": "teal"}]
GOOD = {"messages": TOLD + ASKED}
LONG = {"messages": [*TOLD, ASKED[0], {"role": "assistant", "content": "1 2 3 4 5 6 7 " * 30}]}
LONG_SYSTEM = {"messages": [{"role": "system", "content": "Remember everything. " * 60}, *TOLD, *ASKED]}
BAD = {
    "no json": '{"messages": [',
    "no messages": json.dumps({"text": "Anna"}),
    "no content": json.dumps({"messages": [*TOLD, ASKED[0], {"role": "assistant"}]}),
    "no answer": json.dumps({"messages": [*TOLD, ASKED[0]]}),
    "no history": json.dumps({"messages": ASKED}),
    "too many questions": json.dumps({**GOOD, "read_turns": 2}),
    "an answer that is too long": json.dumps(LONG),
    "a system prompt that is too long": json.dumps(LONG_SYSTEM),
}


def chats(*paths, **options):
    return training_chats(DataArguments(data=[*map(str, paths)], **options), FactEpisodeConfig(), 2, 0, chat_tokenizer())


@pytest.mark.parametrize("reason", BAD)
def test_the_command_names_the_line_before_it_loads_the_backbone(tmp_path, monkeypatch, reason):
    folder = tmp_path / "chats"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps(GOOD))
    (folder / "b.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{BAD[reason]}\n{json.dumps(GOOD)}\n")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    monkeypatch.setattr("deltamem.training.options.load_backbone", lambda *_, **__: pytest.fail("the backbone was loaded"))
    options = ["--data", str(folder), "--model", str(tmp_path / "backbone"), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    result = CliRunner().invoke(app, ["train", *options, "--max_read_tokens", "120"])
    assert result.exit_code == 2, (result.output, result.exception)
    assert f"{folder / 'b.jsonl'}, line 3" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_template_that_refuses_a_chat_names_its_line(tmp_path):
    tokenizer, file = chat_tokenizer(), tmp_path / "chats.jsonl"
    tokenizer.chat_template = (
        "{% if messages|length > 4 %}{{ raise_exception('too many') }}{% endif %}" + tokenizer.chat_template
    )
    file.write_text("\n".join(map(json.dumps, [GOOD, {"messages": TOLD + TOLD + ASKED}])))
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 2: the tokenizer's chat template refuses"):
        training_chats(DataArguments(data=[str(file)]), FactEpisodeConfig(), 2, 0, tokenizer)


def test_a_limit_is_that_of_the_views(tmp_path):
    """With the history in its context, a read pass may be longer."""
    (tmp_path / "chats.jsonl").write_text(json.dumps(LONG))
    given = {"max_read_tokens": 120, "max_write_tokens": 300}
    with pytest.raises(ValueError, match=r"line 1: the read pass has \d+ tokens, more than max_read_tokens=120"):
        chats(tmp_path / "chats.jsonl", **given, views=["context=1", "memory=1"])
    assert len(chats(tmp_path / "chats.jsonl", **given, views=["context=1"])) == 1


def test_files_are_read_no_further_than_the_first_mistake(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 3)
    (tmp_path / "b.jsonl").write_text("{")
    records = records_of(str(tmp_path))
    assert [next(records).place for _ in range(3)] == [f"{tmp_path / 'a.jsonl'}, line {number}" for number in (1, 2, 3)]
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1 is no JSON"):
        next(records)

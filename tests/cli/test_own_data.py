"""Whatever is wrong with a field of a user's data, it is an error that names file and record, before a model is loaded."""

import gzip
import json

import pytest
from examples import examples
from hypothesis import given
from own_data import CHATS, DOCUMENTS, FILLERS, GOOD, damaged
from tiny_chat import chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options
from deltamem.evaluation.tasks import make_tasks
from deltamem.inspection.command import _messages
from deltamem.training.data import DataArguments, training_chats
from deltamem.training.facts import FactEpisodeConfig
from deltamem.training.facts.fillers import _load
from deltamem_cli import app

TOKENIZER = chat_tokenizer()
SUBJECT = Subject(chat_model().eval(), TOKENIZER, "", None)


def evaluation(name):
    """Reads a benchmark; what it takes can be prepared and asked, too."""

    def read(file):
        for task in make_tasks([name], Options(data=file)):
            settings = task.settings(SUBJECT)
            if len(getattr(task, "histories", [1, 2])) < 2:
                settings = [setting for setting in settings if setting != "shuffled"]
            task.prepare(SUBJECT, settings)
            if hasattr(task, "max_new_tokens"):
                task.max_new_tokens = 1
            assert {*task.answer(SUBJECT, settings, range(len(task)))} == {*settings}

    return read


def training(kind=""):
    def read(file):
        options = DataArguments(data=[f"{kind}{file}"], system="Remember")
        chats = training_chats(options, FactEpisodeConfig(), 1, 0, TOKENIZER)
        assert len([chats[place] for place in range(len(chats))]) > 0

    return read


def fillers(file):
    _load.cache_clear()
    assert _load(str(file), "train")


def inspection(file):
    assert _messages(file, 1)


READERS = {
    **{name: (evaluation(name), records) for name, records in GOOD.items()},
    **{f"train {name}": (training(f"{name}:"), records) for name, records in DOCUMENTS.items()},
    "train chats": (training(), CHATS),
    "fillers": (fillers, FILLERS),
    "inspect --chat": (inspection, CHATS),
}


def read(folder, name, records):
    file = folder / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    READERS[name][0](file)


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(tmp_path, name):
    read(tmp_path, name, READERS[name][1])


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_field_is_named_with_its_file_and_line(tmp_path_factory, name):
    folder, refused = tmp_path_factory.mktemp("own"), []

    @examples(15)
    @given(damaged(READERS[name][1]))
    def check(drawn):
        records, number = drawn
        try:
            read(folder, name, records)
        except ValueError as error:
            refused.append(str(error))
            assert f"own.jsonl, line {number}: " in refused[-1] or "own.jsonl has no" in refused[-1], refused[-1]

    check()
    assert refused


ROWS = json.dumps({**GOOD["locomo"][0], "qa": []})
COMMANDS = {
    "eval": ["eval", "locomo", "--data", "FILE", "--model", "BACKBONE"],
    "train": ["train", "--data", "FILE", "--model", "BACKBONE", "--output_dir", "OUTPUT", "--use_cpu", "--report_to", "none"],
    "baseline": ["baseline", "lora", "--data", "FILE", "--model", "BACKBONE", "--output_dir", "OUTPUT", "--use_cpu"],
}


@pytest.fixture
def backbone(tmp_path):
    chat_model().unload().save_pretrained(tmp_path / "BACKBONE")
    TOKENIZER.save_pretrained(tmp_path / "BACKBONE")
    return tmp_path


def run(folder, monkeypatch, command):
    """What a command says, where a model must not be loaded."""
    for module in ("deltamem.backbones", "deltamem.training.options"):
        monkeypatch.setattr(f"{module}.load_backbone", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, COMMANDS[command])
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", [ROWS, json.dumps({"messages": CHATS[0]["messages"][:2]}), "[1]", "{", "\x00", "[" * 100_000])
def test_commands_check_the_data_before_they_load_a_model(backbone, monkeypatch, command, text):
    (backbone / "FILE").write_text(text)
    said = run(backbone, monkeypatch, command)
    assert said.startswith("deltamem: FILE, ")
    assert len(said) < 500


@pytest.mark.parametrize(
    "content", [b"\xff{}", b"not gzipped", gzip.compress(b"[{}]", mtime=0)[:-9]], ids=["bytes", "plain", "cut"]
)
def test_a_file_that_is_no_text_is_named(backbone, monkeypatch, content):
    (backbone / "FILE.json.gz").write_bytes(content)
    monkeypatch.setitem(COMMANDS, "eval", ["eval", "locomo", "--data", "FILE.json.gz", "--model", "BACKBONE"])
    assert "FILE.json.gz cannot be read; give JSON in UTF-8" in run(backbone, monkeypatch, "eval")


@pytest.mark.parametrize("command", ["train", "baseline"])
def test_a_template_that_takes_no_system_prompt(backbone, monkeypatch, command):
    tokenizer = chat_tokenizer()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained(backbone / "BACKBONE")
    without = {**CHATS[0], "messages": CHATS[0]["messages"][1:]}
    (backbone / "FILE").write_text("\n".join(map(json.dumps, [without, without, CHATS[0]])))
    assert "the tokenizer's chat template refuses a chat of the roles system, user" in run(backbone, monkeypatch, command)


def test_a_session_is_said_twice(tmp_path):
    """Two conversations of one key would be asked of one history."""
    with pytest.raises(ValueError, match="line 2: sample_id: 'conversation 1' is not accepted; give another one"):
        read(tmp_path, "locomo", [GOOD["locomo"][0]] * 2)

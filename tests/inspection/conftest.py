"""An adapter and its backbone on the disk, conversations to write with it, and `deltamem inspect`."""

import json

import pytest
from tiny_chat import chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem_cli import app

CHAT = [
    {"role": "system", "content": "Remember everything ."},
    {"role": "user", "content": "Anna likes teal . Bob lives in Oslo ."},
    {"role": "assistant", "content": "Noted ."},
    {"role": "user", "content": "What does Anna like ?"},
]


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Saves an adapter of some options with its backbone: `saved(num_states=2)` is the model and the adapter's folder."""
    made = {}

    def save(**options):
        key = json.dumps(options)
        if key not in made:
            place = tmp_path_factory.mktemp("adapted")
            chat_model(spread=0.2, **options).unload().save_pretrained(place / "backbone")
            chat_tokenizer().save_pretrained(place / "backbone")
            model = chat_model(spread=0.2, **options)
            model.peft_config["default"].base_model_name_or_path = str(place / "backbone")
            model.save_pretrained(place / "adapter")
            made[key] = model, str(place / "adapter")
        return made[key]

    return save


@pytest.fixture
def chat(tmp_path):
    """A file with two conversations, the first of them without a system prompt."""
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (CHAT[1:], CHAT)))
    return str(path)


@pytest.fixture
def messages():
    """The first conversation in that file."""
    return CHAT[1:]


@pytest.fixture
def memory_file(tmp_path):
    """Saves a memory: `memory_file(state, "name")` is its path."""

    def save(state, name="memory.safetensors"):
        state.save(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def inspect():
    """Runs the command, in a wide terminal, and returns its output; `inspect.figures(...)` that of `--json`."""

    def run(*arguments):
        result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["inspect", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    run.figures = lambda *arguments: json.loads(run(*arguments, "--json"))
    return run


@pytest.fixture
def refusal():
    """Runs the command, which must refuse what it is given, and returns its one line on standard error."""

    def run(*arguments):
        result = CliRunner().invoke(app, ["inspect", *arguments])
        assert result.exit_code == 2, result.output
        assert not result.stdout
        assert "Traceback" not in result.stderr
        return result.stderr.rstrip().splitlines()[-1]

    return run

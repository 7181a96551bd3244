"""What a training prints and logs: one line a log, the parts of the loss, the time left."""

import json
import re

import pytest
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from tiny_training import MEMORY, arguments, chat
from typer.testing import CliRunner

from deltamem.cli import app
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.progress import loss_line, rounded
from deltamem.training.trainer import DeltaMemTrainer


@pytest.mark.parametrize("command", [["train"], ["baseline", "lora"]])
def test_a_command_prints_a_line_for_each_log(tmp_path, command):
    tiny_backbone(vocab_size=61).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": one["messages"]}) for one in MEMORY))
    options = (
        f"--model {tmp_path / 'backbone'} --data {tmp_path / 'chats.jsonl'} --eval_data {tmp_path / 'chats.jsonl'} --r 4 "
        f"--max_steps 20 --use_cpu --per_device_train_batch_size 2 --output_dir {tmp_path / 'out'} --eval_strategy steps "
        "--eval_steps 20 --save_minutes 5"
    )
    result = CliRunner().invoke(app, [*command, *options.split()])
    assert result.exit_code == 0, (result.output, result.exception)
    lines = result.stdout.splitlines()
    assert re.search(
        r"^Training [\d,]+ parameters: 20 steps of 2 episodes, which are 40 episodes and about [\d,]+ tokens",
        result.stdout,
        re.M,
    )
    assert f"A checkpoint every 5 minutes in {tmp_path / 'out'}; Ctrl-C saves one and stops." in lines
    steps = [line for line in lines if line.startswith("step ")]
    assert [re.match(r"step +(\d+) of 20   loss \d+\.\d{3}", line)[1] for line in steps] == ["1", "10", "20"]
    assert [" left" in line for line in steps] == [False, True, False]
    assert all((" tokens/s" in line) == (command == ["train"]) for line in steps)
    assert any(re.match(r"evaluation at step 20 .*loss \d", line) for line in lines)
    assert "{'" not in result.output
    history = json.loads((tmp_path / "out" / "checkpoint-20" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 10, 20]


def run(folder, chats, accumulate=1, **options):
    given = {"max_steps": 4, "logging_steps": 2, "logging_first_step": False, **options}
    encoder = EpisodeEncoder(chat_tokenizer(), answer_only=True, whole=True)
    trainer = DeltaMemTrainer(
        chat_model(spread=0.5),
        arguments(folder, size=3, accumulate=accumulate, **given),
        train_dataset=chats,
        data_collator=EpisodeCollator(encoder),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


TAUGHT = {"teacher_weight": 0.5, "write_penalty": 2.0, "write_from": "backbone"}
TWO_VIEWS = [chat(answer, view) for answer in ("teal", "red", "Oslo") for view in ("memory", "another")]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("chats", "options", "parts"),
    [
        (MEMORY, {"write_penalty": 2.0}, {"memory_answers", "write_penalty"}),
        (MEMORY, TAUGHT, {"memory_answers", "memory_teacher", "write_penalty"}),
        (TWO_VIEWS, TAUGHT, {"memory_answers", "memory_teacher", "another_teacher", "write_penalty"}),
        (TWO_VIEWS, {"answer_weight": 0, "teacher_weight": 1}, {"memory_teacher", "another_teacher"}),
    ],
)
def test_a_loss_is_the_sum_of_its_parts(tmp_path, accumulate, chats, options, parts):
    logs = run(tmp_path, chats, accumulate, train_sampling_strategy="sequential", **options)
    assert len(logs) == 2
    for entry in logs:
        found = {name.removeprefix("loss_"): value for name, value in entry.items() if name.startswith("loss_")}
        assert found.keys() == parts
        assert sum(found.values()) == pytest.approx(entry["loss"], rel=1e-5)
        assert all(value > 0 for value in found.values())


def test_a_loss_of_one_part_has_none(tmp_path):
    assert not any(name.startswith("loss_") for entry in run(tmp_path, MEMORY) for name in entry)


def test_a_line():
    logs = {"loss": 3.21, "loss_memory_answers": 3.2, "loss_write_penalty": 0.01, "tokens_per_second": 1234.5, "padding": 0.1}
    assert loss_line(logs, 10, 1000, 754.0) == (
        "step    10 of 1,000   loss 3.210 = memory answers 3.200 + write penalty 0.010   1,234 tokens/s   13 min left"
    )
    assert loss_line({"loss": 3.21}, 1, 20, None) == "step  1 of 20   loss 3.210"


@pytest.mark.parametrize(("number", "text"), [(2345, "2,300"), (2_345_678, "2.3 million"), (4.2e9, "4.2 billion")])
def test_a_large_number(number, text):
    assert rounded(number) == text

"""When a training saves: by time, by transformers' strategies, and when it is told to stop; and how it goes on."""

import json
import os
import shlex
import signal
from types import SimpleNamespace

import pytest
from nightly import by_day
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from tiny_training import ENCODER, MEMORY, arguments
from transformers import Trainer, TrainerCallback
from typer.testing import CliRunner

from deltamem.cli import app
from deltamem.training import command
from deltamem.training.checkpoints import StopOnSignal
from deltamem.training.episodes import EpisodeCollator
from deltamem.training.trainer import DeltaMemTrainer, DeltaMemTrainingArguments


def checkpoints(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


class MinutePerStep(TrainerCallback):
    def __init__(self):
        self.seconds = 0.0

    def monotonic(self):
        return self.seconds

    def on_step_begin(self, *_, **__):
        self.seconds += 60


@pytest.mark.parametrize(("limit", "kept"), [(None, [3, 6, 8]), (2, [6, 8])])
def test_checkpoints_by_time_and_at_the_end(tmp_path, monkeypatch, limit, kept):
    clock = MinutePerStep()
    monkeypatch.setattr("deltamem.training.checkpoints.time", clock)
    given = {"save_strategy": None, "save_minutes": 3, "save_total_limit": limit, "max_steps": 8}
    collator = EpisodeCollator(ENCODER)
    DeltaMemTrainer(
        chat_model(), arguments(tmp_path, **given), train_dataset=MEMORY, data_collator=collator, callbacks=[clock]
    ).train()
    assert checkpoints(tmp_path) == kept


@pytest.mark.parametrize(
    ("given", "strategy", "minutes"),
    [
        ({}, "no", 10),
        ({"save_minutes": 2}, "no", 2),
        ({"save_strategy": "no"}, "no", None),
        ({"save_strategy": "steps"}, "steps", None),
        ({"save_strategy": "epoch"}, "epoch", None),
        ({"save_steps": 7}, "steps", None),
        ({"save_strategy": "steps", "save_minutes": 2}, "steps", 2),
        ({"load_best_model_at_end": True, "eval_strategy": "steps"}, "steps", None),
    ],
)
def test_what_is_given_decides(tmp_path, given, strategy, minutes):
    chosen = DeltaMemTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **given)
    assert (chosen.save_strategy, chosen.save_minutes) == (strategy, minutes)
    assert chosen.save_steps == given.get("save_steps", 500)


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_no_minutes_are_refused(tmp_path, minutes):
    with pytest.raises(ValueError, match=r"save_minutes=\S+ is not accepted; give a number above 0"):
        DeltaMemTrainingArguments(output_dir=str(tmp_path), report_to="none", save_minutes=minutes)


@pytest.fixture
def options(tmp_path):
    """Of a training on a dozen chats that takes four steps of two batches."""
    tiny_backbone(vocab_size=61).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": one["messages"]}) for one in MEMORY * 2))
    return (
        f"--model {tmp_path / 'backbone'} --data {tmp_path / 'chats.jsonl'} --r 4 --max_steps 4 --use_cpu --logging_steps 1 "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --learning_rate 1e-2 --hub_token hf_secret"
    )


def signals_at(monkeypatch, batch, *numbers):
    """Send this process signals while it computes a batch, counted from 1."""
    seen, step = [], Trainer.training_step

    def signalled(*given):
        seen.append(given)
        for number in numbers if len(seen) == batch else ():
            os.kill(os.getpid(), number)
        return step(*given)

    monkeypatch.setattr(Trainer, "training_step", signalled)


def losses(folder):
    return [
        entry["loss"] for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in entry
    ]


@pytest.mark.parametrize(
    ("number", "status", "batch"),
    by_day(
        [(signal.SIGINT, 130, 3), (signal.SIGTERM, 143, 4)],
        [(number, status, batch) for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)) for batch in (3, 4)],
    ),
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, monkeypatch, options, batch, number, status):
    """In whichever batch of the second step it comes, what is printed continues the same curve."""
    command.main([*options.split(), "--output_dir", str(tmp_path / "whole")])
    cut, before = tmp_path / "cut", signal.getsignal(number)
    signals_at(monkeypatch, batch, number)
    result = CliRunner().invoke(app, ["train", *options.split(), "--output_dir", str(cut), "--save_strategy", "no"])
    assert result.exit_code == status, (result.output, result.exception)
    assert checkpoints(cut) == [2]
    assert not (cut / "adapter_model.safetensors").exists()
    assert signal.getsignal(number) is before
    said = result.stdout.splitlines()
    assert f"Stopped at step 2 of 4; {cut}/checkpoint-2 has the adapter so far." in said[-2]
    assert "hf_secret" not in result.output
    words = shlex.split(said[-1])
    assert words[:2] == ["deltamem", "train"]
    assert words[-2:] == ["--resume_from_checkpoint", "true"]
    command.main([*words[2:], "--save_strategy", "steps"])
    assert losses(cut / "checkpoint-4") == pytest.approx(losses(tmp_path / "whole" / "checkpoint-4"), abs=1e-6)
    assert (cut / "adapter_model.safetensors").exists()


def test_a_resumed_training_can_be_stopped_again(tmp_path, monkeypatch, options):
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        signals_at(patched, 1, signal.SIGINT)
        command.main([*options.split(), "--output_dir", str(tmp_path / "cut")])
    signals_at(monkeypatch, 1, signal.SIGINT)
    line = [*options.split(), "--output_dir", str(tmp_path / "cut"), "--resume_from_checkpoint", "true"]
    result = CliRunner().invoke(app, ["train", *line])
    assert result.exit_code == 130
    assert checkpoints(tmp_path / "cut") == [1, 2]
    assert result.stdout.splitlines()[-1].count("--resume_from_checkpoint true") == 1


def test_a_signal_in_the_last_step_is_too_late(tmp_path, monkeypatch, options):
    signals_at(monkeypatch, 8, signal.SIGINT)
    command.main([*options.split(), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch, options):
    signals_at(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        command.main([*options.split(), "--output_dir", str(tmp_path / "out")])
    assert checkpoints(tmp_path / "out") == []


def test_a_signal_that_was_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopOnSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_evaluation_does_not_delay_the_end():
    control = SimpleNamespace(should_training_stop=False, should_save=False, should_log=False, should_evaluate=True)
    stop = StopOnSignal()
    stop.on_step_end(SimpleNamespace(world_size=1), None, control)
    assert control.should_evaluate
    stop.signal = signal.SIGINT
    stop.on_step_end(SimpleNamespace(world_size=1), None, control)
    assert vars(control) == {
        "should_training_stop": True,
        "should_save": True,
        "should_log": True,
        "should_evaluate": False,
    }

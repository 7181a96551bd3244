"""`--dry_run` shows the passes of the first episodes, and trains and writes nothing."""

import json
import re

import pytest
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem.cli import app


def messages(value):
    turns = [f"Anna likes {value}.", "Noted.", "What does Anna like?", value]
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, turns, strict=True)]


VALUES = ("teal", "red", "Oslo", "Rome")
HISTORY = "<|im_start|> user \n Anna likes {} . <|im_end|> \n <|im_start|> assistant \n Noted . <|im_end|> \n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tiny_backbone(vocab_size=61).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": messages(value)}) for value in VALUES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(folder, command, *options):
    """The output of a dry run by episodes, and what stands behind them; on single spaces."""
    common = "--model backbone --data chats.jsonl --r 4 --use_cpu --per_device_train_batch_size 2 --answer_only --dry_run"
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(app, [*command.split(), *common.split(), "--max_steps", "500", *options])
    assert result.exit_code == 0, (result.output, result.exception)
    assert sorted(folder.rglob("*")) == before
    *episodes, rest = re.split(r"^(?:episode .*|─+)$", re.sub(r"[ ]+", " ", result.stdout), flags=re.M)[1:]
    assert re.findall(r"^episode (\d) of \d+, (chats\.jsonl, line \d)", result.stdout, re.M) == [
        (str(number), f"chats.jsonl, line {number}") for number in (1, 2, 3)
    ]
    assert re.search(r"A step takes [\d.]+ s: 500 steps take about \d+ (s|min|h .*)[,.]", rest)
    return episodes, rest


def plain(text):
    """Without what varies: where lines end, which a tokenizer of words decodes with spaces."""
    return " ".join(text.split())


def test_what_is_written_and_read(folder):
    episodes, rest = shown(folder, "train")
    assert len(episodes) == 3
    for episode, value in zip(episodes, VALUES, strict=False):
        assert f"Written to the memory, 16 tokens: {plain(HISTORY.format(value))}" in plain(episode)
        assert "Read in the view memory, with 16 tokens in memory" in episode
        read = rf"trained on the 3 ⟦marked⟧: .*What does Anna like \?.*assistant ⟦{value} <\|im_end\|> ⟧$"
        assert re.search(read, plain(episode))
    assert "4 episodes have on average 16 tokens written (at most 16)" in rest


def test_what_is_compared_with_the_teacher(folder):
    options = "--teacher_weight 1 --answer_weight 0 --views memory=0.5 another=0.5 --reads 8".split()
    text = plain(shown(folder, "train", *options)[0][0])
    assert "⟦" not in text
    assert "Read in the view memory, with 16 tokens in memory" in text
    assert "compared with the backbone with the history in its context:" in text
    assert "Read in the view another, with the memory of the next episode in the batch" in text
    assert "compared with the bare backbone:" in text
    assert text.count("⟨<|im_start|> user") == 2


def test_segments_are_marked(folder):
    chat_model(write="message").save_pretrained(folder / "adapter")
    text = plain(shown(folder, "train", "--adapter", "adapter")[0][0])
    written = text.partition("Read in")[0]
    assert "each ⟦segment⟧ at once:" in written
    assert re.findall("⟦([^⟧]+)⟧", written.partition("once:")[2]) == ["Anna likes teal .", "Noted ."]


def test_a_long_history_loses_its_middle(folder):
    told = messages("teal")
    told[0]["content"] = "Hello there . " * 200 + "Anna likes teal."
    lines = [json.dumps({"messages": one}) for one in (told, *map(messages, VALUES))]
    (folder / "chats.jsonl").write_text("\n".join(lines))
    text = plain(shown(folder, "train")[0][0])
    assert "Written to the memory, 616 tokens" in text
    assert "… 216 tokens are not shown …" in text
    assert "Anna likes teal . <|im_end|>" in text


def test_the_steps_are_measured_where_no_peak_can_be(folder, monkeypatch):
    monkeypatch.setattr("deltamem.training.dry_run.peak_bytes", lambda *_: None)
    assert "peak memory" not in shown(folder, "train")[1]


def test_a_baseline_reads_without_the_history(folder):
    episodes, rest = shown(folder, "baseline lora")
    assert "Noted" not in "".join(episodes)
    assert "Read without the history" in episodes[0]
    assert "written" not in rest

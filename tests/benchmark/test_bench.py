import json
import statistics
import subprocess

import pytest
from nightly import by_day
from rich.progress import Progress
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem.benchmark import run as bench
from deltamem.benchmark import serve_speed, start_up
from deltamem.benchmark.shapes import SHAPES
from deltamem.serve.turn import Sampling
from deltamem_cli import app

FAST = ["--prompt", "9", "--new-tokens", "3", "--runs", "6"]
PHASES = ("prefill", "decode", "train", *by_day([], ["decode_static", "decode_compiled"]))  # a compiler takes its time
MEASURED = {"base_ms", "adapted_ms", "ratio", "ratio_interval", "memory_bytes"}


@pytest.fixture
def folder(tmp_path):
    """A backbone with its tokenizer."""
    tiny_backbone(eos_token_id=3).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    return str(tmp_path / "backbone")


def figures(*arguments):
    result = CliRunner().invoke(app, ["bench", *FAST, *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def check(measured):
    """That figures are there and consistent."""
    assert {*measured} >= MEASURED
    bare, adapted = zip(*measured["pairs_ms"], strict=True)
    assert len(bare) == 6
    assert measured["ratio"] == statistics.median(a / b for b, a in zip(bare, adapted, strict=True))
    assert measured["base_ms"] == statistics.median(bare)
    assert measured["adapted_ms"] == statistics.median(adapted)
    assert measured["ratio_interval"][0] <= measured["ratio"] <= measured["ratio_interval"][1]


def test_what_is_measured_by_default(folder):
    found = figures("--model", folder, "--prompt", "12")
    assert [prompt["tokens"] for prompt in found["prompts"]] == [9, 12]
    for prompt in found["prompts"]:
        check(prompt["prefill"])
        check(prompt["decode"])
    assert found["prefill"] == found["prompts"][0]["prefill"]
    assert found["prefill"]["memory_bytes"] == 2 * 8 * 8 * 4  # layers, rows, columns, bytes
    assert not {"train", "rule", "written", "profile", "decode_static", "decode_compiled"} & {*found}
    assert {"machine", "device", "threads", "versions", "date", "dtype", "batch", "runs", "model", "adapter"} <= {*found}
    assert {"torch", "transformers", "peft", "deltamem"} <= {*found["versions"]}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The figures of all that can be measured."""
    folder = tmp_path_factory.mktemp("measured")
    tiny_backbone(eos_token_id=3).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    more = ["--train", "--rule", "--profile", "--written", "8", "--written", "40", "--batch", "2"]
    more += by_day([], ["--compile", "eager"])
    return figures("--model", str(folder), "--variant", "msw", *more)


def test_all_that_can_be_measured(everything):
    found = everything
    for phase in PHASES:
        check(found[phase])
        assert found[phase]["memory_bytes"] == 2 * 4 * 8 * 8 * 4
        assert found[phase].get("same_tokens", True)
    assert found["train"]["adapted_tokens_per_second"] == pytest.approx(2 * 9 / found["train"]["adapted_ms"] * 1e3)
    assert {*found["profile"]} == {"prefill", "decode", "train"}
    for rows in found["profile"].values():
        assert sum(row["adapted_calls"] for row in rows) > sum(row["base_calls"] for row in rows) > 0
    assert [(row["tokens"], row["memory_bytes"]) for row in found["written"]] == [(8, 2048), (40, 2048)]
    for row in found["written"]:
        check(row)
    assert {"reference", "chunked", "compiled"} <= {row["backend"] for row in found["rule"]}
    assert all(row["forward_ms"] > 0 and row["backward_ms"] > 0 for row in found["rule"])


def test_a_trained_adapter(folder, tmp_path):
    chat_model().save_pretrained(tmp_path / "adapter")
    found = figures("--model", folder, "--adapter", str(tmp_path / "adapter"))
    assert found["adapter"]["r"] == 4
    assert found["decode"]["memory_bytes"] == 2 * 4 * 4 * 4


def test_a_shape(monkeypatch):
    tiny = {"hidden_size": 36, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 61}
    monkeypatch.setitem(SHAPES, "smollm2-135m", {**SHAPES["smollm2-135m"], **tiny})
    found = figures("--dtype", "bfloat16")
    assert found["model"]["name"] == "smollm2-135m"
    assert found["model"]["num_hidden_layers"] == 2
    assert found["dtype"] == "bfloat16"


def test_the_rule_needs_no_model(monkeypatch):
    monkeypatch.setattr(bench, "make_backbone", None)
    found = figures("--rule")
    assert "prefill" not in found
    assert {row["tokens"] for row in found["rule"]} == {9}


def test_the_start_of_programs_needs_no_model(monkeypatch):
    monkeypatch.setattr(bench, "make_backbone", None)
    monkeypatch.setattr(start_up, "PROGRAMS", {"quick": "", "slow": "import time; time.sleep(0.2)"})
    found = figures("--start")
    assert "prefill" not in found
    quick, slow = found["start"]
    assert (quick["name"], slow["name"]) == ("quick", "slow")
    assert slow["ms"] > 200


def test_users_at_once(folder, monkeypatch):
    monkeypatch.setattr(serve_speed, "USERS", (1, 3))
    rows = figures("--serve", "--model", folder)["serve"]
    assert [(row["users"], row["kind"]) for row in rows] == [
        (users, kind) for users in (1, 3) for kind in ("bare", "read", "after", "during")
    ]
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert (row["of_bare"] == 1) == (row["kind"] == "bare")
        assert (row["of_one"] == 1) == (row["users"] == 1)
        assert all(0 < middle <= end for middle, end in (row["first_ms"], row["between_ms"]))


def test_a_turn_that_fails_is_not_timed(folder, monkeypatch):
    monkeypatch.setattr(serve_speed, "Sampling", lambda **given: Sampling(max_tokens=10**6, temperature=0))
    with pytest.raises(AssertionError, match="asks for 1000000 more"):  # told by the command, which ends
        figures("--serve", "--model", folder)


def test_a_program_that_fails_is_not_timed(monkeypatch):
    monkeypatch.setattr(start_up, "PROGRAMS", {"wrong": "raise SystemExit(1)"})
    with pytest.raises(subprocess.CalledProcessError):
        start_up.time_start(6, Progress(disable=True))


def test_tables_and_a_plot(everything, tmp_path, monkeypatch):
    image = tmp_path / "figures.png"
    monkeypatch.setattr(bench, "run", lambda settings: everything)
    result = CliRunner().invoke(app, ["bench", "--plot", str(image)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    for expected in (
        "prefill",
        "decoding, per token",
        "training step",
        "tokens a second",
        "tokens written",
        "reference",
        "aten::",
        "40",
    ):
        assert expected in result.output
    assert image.read_bytes().startswith(b"\x89PNG")


def test_what_is_no_file_is_not_drawn_to(tmp_path, monkeypatch):
    monkeypatch.setattr("deltamem.benchmark.run.run", None)
    (tmp_path / "figures.png").mkdir()
    result = CliRunner().invoke(app, ["bench", "--plot", str(tmp_path / "figures.png")])
    assert result.exit_code == 2
    assert "is a folder, where a file belongs" in result.stderr


def test_a_plot_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    def fails(*given, **options):
        raise OSError("disk full")

    row = {"tokens": 8, "backend": "chunked", "forward_ms": 1, "backward_ms": 1}
    measured = {"adapter": {"name": "new"}, "machine": "here", "rule": [row]}
    monkeypatch.setattr("deltamem.benchmark.run.run", lambda settings: measured)
    monkeypatch.setattr("deltamem.io.drawings.write_atomically", fails)
    result = CliRunner().invoke(app, ["bench", "--plot", str(tmp_path / "figures.png"), "--json"])
    assert (result.exit_code, result.stderr) == (2, "deltamem: disk full\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "smollm2-136m"], "Did you mean 'smollm2-135m'?"),
        (["--variant", "lsw"], "choose one of tsw, ssw, msw"),
        (["--variant", "tsw", "--adapter", "somewhere"], "exclude each other"),
        (["--model", "qwen3-4b", "--adapter", "somewhere"], "random ones"),
        (["--dtype", "int8"], "float32, bfloat16, float16"),
        (["--device", "abacus"], "--device 'abacus' cannot be used"),
        (["--prompt", "0"], "--prompt 0 is not accepted"),
        (["--written", "-1"], "--written -1 is not accepted"),
        (["--new-tokens", "0"], "--new-tokens 0 is not accepted"),
        (["--batch", "0"], "--batch 0 is not accepted"),
        (["--runs", "5"], "at least 6"),
        (["--compile", "gcc"], "--compile 'gcc' is not accepted"),
        (["--plot", "figures.txt"], ".png"),
        (["--plot", "no/such/folder/figures.png"], "no/such/folder"),
        (["--prompt", "8190", "--new-tokens", "3"], "8,193 tokens"),
    ],
)
def test_wrong_input_is_refused_before_any_work(arguments, message, monkeypatch):
    monkeypatch.setattr("deltamem.benchmark.shapes.AutoModelForCausalLM", None)
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1

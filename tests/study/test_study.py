import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deltamem.backbones import Placement
from deltamem.evaluation.recall import RecallTest
from deltamem.study import command
from deltamem.study.grid import read_grid
from deltamem.study.measurement import Measurement
from deltamem.study.results import Results
from deltamem.study.small_backbone import SmallBackbone, untrained
from deltamem.study.training import StudyTraining, train
from deltamem.study.words import word_tokenizer
from deltamem_cli import app

GRID = """
backbone: BACKBONE
training: {max_steps: 2, per_device_train_batch_size: 2, use_cpu: true}
vary:
  r: {adapter.r: [2, 4]}
  write: {adapter: [{r: 2}, {r: 2, write: message}]}
measure: [{facts: [1, 2], episodes: 4}]
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = word_tokenizer()
    untrained(SmallBackbone(layers=1, width=16, heads=2), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def grid_file(tmp_path, backbone):
    path = tmp_path / "tiny.yaml"
    path.write_text(GRID.replace("BACKBONE", str(backbone)), encoding="utf-8")
    return path


@pytest.fixture
def undrawn(monkeypatch):
    """Saves the time that images take."""
    monkeypatch.setattr("deltamem.study.report.draw", lambda curves, folder: [])


def lines(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()]


def record(run, recall, memory_bytes):
    """The line of a run whose memory recalls so much, by number of facts."""
    figures = [
        {"recall": {"memory": recall[m.facts], "zero_memory": 0.1, "shuffled_memory": 0.2}, "chance": 0.1} for m in run.measure
    ]
    return {"run": run.resolved, "figures": figures, "final_loss": 0.5, "memory_bytes": memory_bytes, "trained_parameters": 7}


def test_each_run_is_done_once_and_a_study_goes_on_where_it_was_broken_off(grid_file, tmp_path, undrawn):
    folder = tmp_path / "results"
    summary = command.main(grid_file, folder, limit=1)
    assert (summary["runs_done"], summary["runs_left"]) == (1, 2)
    with (folder / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "half')
    summary = command.main(grid_file, folder)
    assert (summary["runs_done"], summary["runs_left"]) == (3, 0)
    done = lines(folder)
    # r=2 is in both curves.
    assert [line["variant"] for line in done] == ["r=2", "r=4", "r=2, write=message"]
    assert all(line["final_loss"] > 0 and line["trained_parameters"] > 0 for line in done)
    assert [line["memory_bytes"] for line in done] == [16, 64, 16]
    command.main(grid_file, folder)
    assert lines(folder) == done


def test_a_grid_with_another_base_runs_anew(grid_file, tmp_path, undrawn):
    command.main(grid_file, tmp_path / "results", only="write", limit=1)
    grid_file.write_text(grid_file.read_text(encoding="utf-8").replace("max_steps: 2", "max_steps: 1"), encoding="utf-8")
    summary = command.main(grid_file, tmp_path / "results", only="write", limit=1)
    assert (summary["runs_done"], summary["runs_left"]) == (1, 1)
    assert len(lines(tmp_path / "results")) == 2


def test_a_run_can_be_repeated_exactly_and_seeds_differ(grid_file, tmp_path, undrawn):
    text = grid_file.read_text(encoding="utf-8")
    grid_file.write_text(f"{text}\nseeds: [0, 1]", encoding="utf-8")
    for name, part in (("once", None), ("again", "2/2")):  # so that another run, or none, is done before
        command.main(grid_file, tmp_path / name, only="write", part=part)
    once, again = ({line["id"]: line["final_loss"] for line in lines(tmp_path / name)} for name in ("once", "again"))
    assert len({*once.values()}) == 4
    assert len(again) == 2
    assert again.items() <= once.items()


def test_the_saved_adapter_is_measured_as_it_was_after_training(grid_file, tmp_path, undrawn):
    command.main(grid_file, tmp_path / "results", limit=1)
    (trained,) = lines(tmp_path / "results")
    adapter = tmp_path / "results" / "adapters" / trained["id"]
    grid_file.write_text(f"adapter: {{path: {adapter}}}\nmeasure: [{{facts: [1, 2], episodes: 4}}]", encoding="utf-8")
    command.main(grid_file, tmp_path / "measured")
    (measured,) = lines(tmp_path / "measured")
    assert measured["figures"] == trained["figures"]
    assert (measured["final_loss"], measured["trained_parameters"]) == (None, 0)


@pytest.fixture
def dtypes(monkeypatch):
    """The dtypes of the backbones that are trained with, and of those that are measured."""
    seen = {"trained": [], "measured": []}

    def trains(model, *given):
        seen["trained"].append(model.get_base_model().dtype)
        return train(model, *given)

    class Measured(RecallTest):
        def run(self, *given):
            seen["measured"].append(self.model.get_base_model().dtype)
            return super().run(*given)

    monkeypatch.setattr("deltamem.study.run.train", trains)
    monkeypatch.setattr("deltamem.study.run.RecallTest", Measured)
    return seen


def test_training_and_measuring_run_in_the_dtype_which_makes_runs_of_their_own(grid_file, tmp_path, undrawn, dtypes):
    bfloat16 = Placement("bfloat16")
    command.main(grid_file, tmp_path / "results", limit=1, placement=bfloat16)
    (line,) = lines(tmp_path / "results")
    assert dtypes == {"trained": [torch.bfloat16], "measured": [torch.bfloat16] * 2}
    assert line["run"]["dtype"] == "bfloat16"
    summaries = [command.main(grid_file, tmp_path / "results", draw=True, placement=place) for place in (None, bfloat16)]
    assert [summary["runs_done"] for summary in summaries] == [0, 1]
    adapter = tmp_path / "results" / "adapters" / line["id"]
    grid_file.write_text(f"adapter: {{path: {adapter}}}\nmeasure: [{{facts: 1, episodes: 4}}]", encoding="utf-8")
    command.main(grid_file, tmp_path / "measured", placement=bfloat16)
    assert dtypes["measured"] == [torch.bfloat16] * 3


def test_runs_of_before_are_those_of_float32_on_any_device(grid_file):
    (here, *_), (there, *_) = (
        replace(read_grid(grid_file), placement=Placement(device=device)).runs() for device in ("cpu", "meta")
    )
    assert here.resolved == there.resolved
    assert "dtype" not in here.resolved


def test_a_training_that_would_run_elsewhere_is_refused_before_anything_runs(grid_file, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "carry_out", None)
    with pytest.raises(ValueError, match="--device 'meta' is not accepted: transformers would train this grid on cpu"):
        command.main(grid_file, tmp_path / "results", placement=Placement(device="meta"))
    assert not (tmp_path / "results").exists()


def test_the_cpu_is_used_where_it_is_named_and_where_the_grid_says_so():
    by_itself, decided = StudyTraining({}), StudyTraining({"use_cpu": True})
    assert [by_itself.arguments(Path(), 0, device).use_cpu for device in ("cpu", "cuda", None)] == [True, False, False]
    assert decided.arguments(Path(), 0, "cuda").use_cpu


def test_parts_are_all_runs_between_them(grid_file, tmp_path, undrawn):
    halves = [command.main(grid_file, tmp_path / "results", part=part, draw=True)["runs_left"] for part in ("1/2", "2/2")]
    assert halves == [2, 1]
    for part in ("0/2", "3/2", "2"):
        with pytest.raises(ValueError, match="1/2 and 2/2"):
            command.main(grid_file, tmp_path / "results", part=part)


def test_a_summary_of_a_hand_made_study(grid_file, tmp_path):
    text = grid_file.read_text(encoding="utf-8").replace("[2, 4]", "[2, 4, 8]").replace("facts: [1, 2]", "facts: [1, 4, 16]")
    grid_file.write_text(f"{text}\nseeds: [0, 1]", encoding="utf-8")
    results = Results(tmp_path / "results")
    # Half of recall above chance at 2, 4 and 8 facts: as the square root of the numbers in a memory, which grow fourfold.
    recalls = {2: {1: 1.0, 4: 0.1, 16: 0.1}, 4: {1: 1.0, 4: 0.55, 16: 0.1}, 8: {1: 1.0, 4: 1.0, 16: 0.1}}
    for run in read_grid(grid_file).runs("r"):
        r = run.resolved["adapter"]["r"]
        shift = 0.02 if run.seed else -0.02
        recall = {facts: value + (shift if facts == 1 else 0) for facts, value in recalls[r].items()}
        results.append(record(run, recall, 4 * r * r))

    shown = CliRunner().invoke(app, ["study", str(grid_file), "--results", str(results.folder), "--draw", "--json"])
    assert shown.exit_code == 0, shown.output
    summary = json.loads(shown.stdout)
    law = summary["curves"]["r"]["capacity_law"]
    assert (law["exponent"], law["r_squared"]) == (pytest.approx(0.5), pytest.approx(1))
    assert [variant["capacity"] for variant in summary["curves"]["r"]["variants"]] == pytest.approx([2, 4, 8])
    assert summary["curves"]["write"]["variants"][0]["variant"] == "r=2"  # done, as it is in both curves
    images = {f"{name}.png" for name in ("r_varied", "r_facts", "r_capacity", "write_varied", "write_facts")}
    assert {image.name for image in results.folder.glob("*.png")} == images
    page = (results.folder / "summary.md").read_text(encoding="utf-8")
    # t(0.975, 1) = 12.706, standard deviation 0.0283: 12.706 * 0.0283 / sqrt(2) = 0.254.
    assert "| r=4 | 100 ± 25 | 55 ± 0 | 10 ± 0 |" in page
    assert "size^0.50" in page


def test_a_line_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"run": 1}\n{}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is not a run of a study"):
        Results(tmp_path).read()


def test_wrong_input_is_told_in_one_line(tmp_path):
    shown = CliRunner().invoke(app, ["study", str(tmp_path / "none.yaml")])
    assert shown.exit_code == 2
    assert "none.yaml" in shown.stderr


@pytest.mark.parametrize("tokens", [64, 300])
def test_facts_are_told_so_many_tokens_ago(tokens):
    tokenizer = word_tokenizer()
    near, far = (Measurement(tokens_since=since, episodes=3).episodes_for(tokenizer, 0) for since in (0, tokens))
    for short, long in zip(near, far, strict=True):
        assert long.messages[: len(short.history)] == short.history
        added = len(tokenizer.apply_chat_template(long.history)["input_ids"]) - len(
            tokenizer.apply_chat_template(short.history)["input_ids"]
        )
        assert tokens <= added < tokens + 20

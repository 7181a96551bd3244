import json

import pytest
from evaluation_results import locomo_like, write_locomo, write_task
from typer.testing import CliRunner

from deltamem.evaluation.report.results import read_results
from deltamem_cli import app


def refusal(folder):
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 2, result.output
    assert not (folder / "report.html").exists()
    return result.stderr.rstrip().splitlines()[-1]


def test_the_rows_of_all_settings_are_of_the_same_questions_in_the_same_order(tmp_path):
    rows = locomo_like("none", 6)
    write_task(tmp_path, "locomo", {"memory": rows[2:], "none": rows[::-1], "other": rows, "another": rows})
    (task,) = read_results(tmp_path)
    (seed,) = task.seeds
    assert [*seed] == ["none", "memory", "another", "other"]
    assert len({tuple(row["index"] for row in several) for several in seed.values()}) == 1
    assert sorted(row["index"] for row in seed["none"]) == [2, 3, 4, 5]


def test_a_text_may_hold_line_separators(tmp_path):
    rows = [{**row, "prediction": "one\u2028two\x85three\r\n"} for row in locomo_like("none", 3)]
    write_task(tmp_path, "locomo", {"none": rows})
    (task,) = read_results(tmp_path)
    assert task.seeds == [{"none": rows}]


def test_seeds_come_in_the_order_of_their_numbers(tmp_path):
    for seed in (10, 9):
        write_locomo(tmp_path / f"seed-{seed}", settings=("none",), count=3, seed=seed)
    (task,) = read_results(tmp_path)
    assert task.options["seed"] == 9
    assert task.seeds == [{"none": locomo_like("none", 3, seed)} for seed in (9, 10)]


def test_a_setting_that_one_seed_lacks_is_left_out_and_said_to_be(tmp_path):
    write_locomo(tmp_path / "seed-1", settings=("none", "memory"), count=3)
    write_locomo(tmp_path / "seed-2", settings=("none",), count=3)
    (task,) = read_results(tmp_path)
    assert [[*seed] for seed in task.seeds] == [["none"], ["none"]]
    assert task.notes == ["Not asked with every seed, and left out: memory of seed-1."]


def test_where_there_are_no_results(tmp_path):
    assert "there is no folder" in refusal(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("something else")
    assert "has no results of an evaluation; expected folders TASK" in refusal(tmp_path)
    task = write_task(tmp_path, "locomo", {"none": []})
    assert "has no results of an evaluation" in refusal(tmp_path)
    assert f"is the folder of one task; give the one that it is in, {tmp_path}" in refusal(task)


@pytest.mark.parametrize("line", ["{", "[1]", "null", '{"recall": 1.0}'])
def test_a_line_that_is_no_answer(line, tmp_path):
    task = write_locomo(tmp_path, settings=("none",), count=3)
    with (task / "none.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert "none.jsonl, line 4 is not an answer of an evaluation" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_options_that_are_none(text, tmp_path):
    (write_locomo(tmp_path, count=3) / "options.json").write_text(text)
    assert "options.json is not the options of an evaluation" in refusal(tmp_path)


def test_seeds_of_other_options_are_not_mixed(tmp_path):
    write_locomo(tmp_path / "seed-1", count=3, seed=1, limit=3)
    write_locomo(tmp_path / "seed-2", count=3, seed=2, limit=4)
    assert "are not of one evaluation: they differ in the options limit;" in refusal(tmp_path)


def test_a_damaged_memory(tmp_path):
    task = write_locomo(tmp_path, settings=("none",), count=3)
    (task / "memory" / "conv-26").mkdir(parents=True)
    (task / "memory" / "conv-26" / "001.safetensors").write_bytes(b"damaged")
    assert "001.safetensors' is not a readable safetensors file" in refusal(tmp_path)


def test_the_options_are_as_they_were_given(tmp_path):
    task = write_locomo(tmp_path, settings=("none",), count=3, limit=7)
    assert read_results(tmp_path)[0].options == json.loads((task / "options.json").read_text())

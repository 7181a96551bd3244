import math

import pytest
from evaluation_results import write_locomo, write_task

from deltamem.evaluation import continuation
from deltamem.evaluation.report.figures import TaskFigures
from deltamem.evaluation.report.results import read_results
from deltamem.evaluation.summary import summarise_seeds


def figures(folder):
    (task,) = read_results(folder)
    return TaskFigures(task)


def test_what_a_task_measures(tmp_path):
    write_locomo(tmp_path, count=20)
    found = figures(tmp_path)
    assert [*found.metrics] == ["f1", "gold_first", "log_likelihood"]
    assert [metric.share for metric in found.metrics.values()] == [False, True, False]
    assert found.main == "f1"


def test_what_measures_nothing(tmp_path):
    row = {"gold": 1, "group": None, "question": "?", "log_likelihoods": [-1.0], "partly": 0.5, "acc": True}
    rows = [{"index": index, **row} for index in range(3)]
    del rows[1]["partly"]
    write_task(tmp_path, "arc_easy", {"none": rows})
    assert [*figures(tmp_path).metrics] == ["acc"]


def test_what_lm_evaluation_harness_says(tmp_path):
    """Pairs of what was followed of how many instructions; log-likelihoods under the name of what they make."""
    rows = [{"index": 0, "perplexity": -1.0, "inst_level_strict_acc": [1.0, 3.0], "bits": [-3.0, 4.0]}]
    rows += [{"index": 1, "perplexity": -3.0, "inst_level_strict_acc": [1.0, 1.0], "bits": [-2.0, 4.0]}]
    write_task(tmp_path, "ifeval", {"none": rows, "zero": rows})
    found = figures(tmp_path)
    assert found.main is None
    assert found.ratios("none", 0) == {}
    values = {entry["metric"]: entry["value"] for entry in found.entries}
    assert values == {"inst_level_strict_acc": pytest.approx(0.5), "perplexity": pytest.approx(math.exp(2))}


def test_what_rows_do_not_tell(tmp_path):
    """An empty memory changes nothing: that is no share of texts."""
    rows = [{"index": index, "kl": 0.0, "changed": 0.0} for index in range(3)]
    write_task(tmp_path, "harm", {"zero": rows})
    write_task(tmp_path, "another", {"zero": rows})
    another, harm = (TaskFigures(task) for task in read_results(tmp_path))
    assert [metric.share for metric in harm.metrics.values()] == [False, False]
    assert [metric.share for metric in another.metrics.values()] == [True, True]  # the control


def test_what_a_metric_derives(tmp_path):
    nats = {"memory": (2.0, 3.0), "shuffled": (2.5, 3.1), "full": (1.0, 2.0), "full_shuffled": (2.0, 4.0)}
    rows = {setting: [{"index": place, "nats": value} for place, value in enumerate(two)] for setting, two in nats.items()}
    write_task(tmp_path, "continuation", rows)
    entries = figures(tmp_path).entries
    assert entries == summarise_seeds("continuation", continuation.METRICS, [rows])
    assert [entry["metric"] for entry in entries] == ["nats"] * 4 + ["specific", "bound"]


def test_ratios_are_of_the_main_metric(tmp_path):
    write_locomo(tmp_path, settings=("none", "memory", "full"), count=40)
    found = figures(tmp_path)
    by_setting = {entry["setting"]: entry for entry in found.entries if entry["metric"] == "f1" and entry["group"] is None}
    ratios = found.ratios("none", 0)
    assert {setting: ratio.value for setting, ratio in ratios.items()} == {
        setting: by_setting[setting]["ratio"] for setting in ("memory", "full")
    }
    assert [*found.ratios("full", 0)] == ["none", "memory"]
    assert found.ratios("zero", 0) == {}

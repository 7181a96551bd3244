import pytest
from evaluation_results import locomo_like

from deltamem.evaluation.summary import summarise_seeds
from deltamem.evaluation.summary_table import print_summary
from deltamem.evaluation.task import Metric, mean, share

METRICS = {"f1": Metric("f1", mean), "gold_first": share("gold_first"), "log_likelihood": Metric("log_likelihood", mean)}
SETTINGS = ("none", "memory", "shuffled", "full")


def entries(seeds, metrics=METRICS):
    return {(entry["group"], entry["setting"], entry["metric"]): entry for entry in summarise_seeds("locomo", metrics, seeds)}


def rows(settings=SETTINGS, **options):
    return {setting: locomo_like(setting, **options) for setting in settings}


def test_every_setting_is_compared_with_none_and_with_full():
    given = rows()
    found = entries([given])
    value = {setting: sum(row["f1"] for row in several) / 300 for setting, several in given.items()}
    for setting in SETTINGS:
        entry = found[None, setting, "f1"]
        assert (entry["value"], entry["questions"], entry["seeds"]) == (pytest.approx(value[setting]), 300, 1)
        assert entry["low"] < entry["value"] < entry["high"]
        compared = {"difference": "none", "ratio": "none", "full_ratio": "full"}
        there = {name for name in compared if name in entry}
        assert there == {name for name, baseline in compared.items() if baseline != setting}
        for name in there:
            baseline = value[compared[name]]
            expected = value[setting] - baseline if name == "difference" else value[setting] / baseline
            assert entry[name] == pytest.approx(expected)
            assert entry[f"{name}_low"] < entry[name] < entry[f"{name}_high"]


def test_comparisons_are_paired():
    given = rows(("none",))
    found = entries([{**given, "memory": [{**row, "f1": 2 * row["f1"]} for row in given["none"]]}])
    entry = found[None, "memory", "f1"]
    assert (entry["ratio_low"], entry["ratio_high"]) == (pytest.approx(2.0), pytest.approx(2.0))


def test_there_is_no_ratio_to_nothing_and_none_of_log_likelihoods():
    given = rows(("none", "memory"))
    found = entries([{**given, "none": [{**row, "f1": 0.0} for row in given["none"]]}])
    assert "ratio" not in found[None, "memory", "f1"]
    assert "ratio" not in found[None, "memory", "log_likelihood"]
    assert found[None, "memory", "log_likelihood"]["difference"] > 0


def test_groups_are_summed_up_separately():
    given = rows(("none", "memory"))
    found = entries([given])
    of_group = [row["f1"] for row in given["memory"] if row["group"] == "temporal"]
    assert found["temporal", "memory", "f1"]["value"] == pytest.approx(sum(of_group) / len(of_group))
    assert found["temporal", "memory", "f1"]["questions"] == len(of_group) == 75


def test_a_share_of_one_seed_has_wilsons_interval():
    given = rows(("none",), count=100)
    entry = entries([{"none": [{**row, "gold_first": 0.0} for row in given["none"]]}])[None, "none", "gold_first"]
    assert (entry["low"], entry["high"]) == (0.0, pytest.approx(0.037, abs=1e-3))  # the bootstrap would say 0 to 0


def test_seeds_that_asked_the_same_questions():
    seeds = [rows(("none", "memory"), count=60, seed=seed) for seed in range(3)]
    entry = entries(seeds)[None, "memory", "f1"]
    of_seeds = [entries([seed])[None, "memory", "f1"] for seed in seeds]
    assert entry["value"] == pytest.approx(sum(one["value"] for one in of_seeds) / 3)
    assert entry["difference"] == pytest.approx(sum(one["difference"] for one in of_seeds) / 3)
    assert (entry["questions"], entry["seeds"]) == (60, 3)


def test_seeds_that_asked_other_questions():
    first = rows(("none", "memory"), places=range(100))
    second = rows(("none", "memory"), places=range(1000, 1060), seed=1)
    entry = entries([first, second])[None, "memory", "f1"]
    of_seeds = [entries([seed])[None, "memory", "f1"]["value"] for seed in (first, second)]
    assert entry["value"] == pytest.approx(sum(of_seeds) / 2)  # each seed counts once
    assert (entry["questions"], entry["seeds"]) == (160, 2)


def test_a_group_that_one_seed_did_not_ask():
    """Generated questions are of kinds that are drawn, too."""
    first, second = (rows(("none", "memory"), places=places) for places in (range(8), range(0, 80, 4)))
    assert {row["group"] for row in second["none"]} == {"multi-hop"}
    found = entries([first, second])
    assert found["temporal", "memory", "f1"]["seeds"] == 1
    assert found["multi-hop", "memory", "f1"]["seeds"] == 2


def test_what_does_not_belong_together_is_refused():
    given = rows(("none", "memory"))
    with pytest.raises(ValueError, match=r"different numbers of questions: none 300, memory 299; ask"):
        entries([{**given, "memory": given["memory"][1:]}])
    with pytest.raises(ValueError, match=r"asked under other settings: none, memory, and none; ask"):
        entries([given, rows(("none",))])


def test_the_table_shows_what_there_is(capsys):
    print_summary(summarise_seeds("locomo", METRICS, [rows(("none", "memory", "full"))]))
    table = capsys.readouterr().out
    for expected in ("against none", "times none", "times full", "×", "locomo: temporal"):
        assert expected in table
    assert "seeds" not in table
    print_summary(summarise_seeds("locomo", METRICS, [rows(("memory",), count=9, seed=seed) for seed in range(2)]))
    table = capsys.readouterr().out
    assert "times" not in table
    assert "seeds" in table

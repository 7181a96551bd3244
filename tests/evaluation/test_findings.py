"""What the command says about its figures."""

import pytest
from evaluation_results import locomo_like

from deltamem.evaluation import off_task
from deltamem.evaluation.facts import SETTINGS as OF_FACTS
from deltamem.evaluation.findings import findings
from deltamem.evaluation.settings import EXPLAINED
from deltamem.evaluation.summary import summarise_seeds
from deltamem.evaluation.task import Metric, mean


def rows(value, count, metric):
    return [{"index": place, "question": str(place), metric: value + 0.1 * (place % 3)} for place in range(count)]


def said(memory, shuffled, metric="f1", count=120):
    given = {"none": rows(0.5, count, metric), "memory": rows(memory, count, metric), "shuffled": rows(shuffled, count, metric)}
    return findings(summarise_seeds("task", {metric: Metric(metric, mean)}, [given]))


@pytest.mark.parametrize(
    ("memory", "shuffled", "metric", "words"),
    [
        (0.7, 0.2, "f1", "the memory is better than another history's"),
        (0.2, 0.7, "f1", "the memory is worse than another history's"),
        (0.2, 0.7, "nats", "the memory is better than another history's"),
        (0.4, 0.4, "f1", "no difference from another history's (shuffled) can be seen"),
    ],
)
def test_a_memory_is_compared_with_another(memory, shuffled, metric, words):
    sentences = said(memory, shuffled, metric)
    assert len(sentences) == 2
    assert words in sentences[0]
    assert sentences[0].startswith(f"task, {metric}: ")


def test_few_questions_are_said_to_be_few():
    assert said(0.7, 0.2, count=99)[-1] == "task: 99 questions are few, so the intervals are wide; ask 100 or more."
    assert not [sentence for sentence in said(0.7, 0.2, count=100) if "few" in sentence]


def test_the_first_metric_speaks_for_the_task():
    given = {setting: locomo_like(setting) for setting in ("none", "memory", "shuffled")}
    metrics = {name: Metric(name, mean) for name in ("f1", "log_likelihood")}
    assert {sentence.split(":")[0] for sentence in findings(summarise_seeds("locomo", metrics, [given]))} == {"locomo, f1"}


def test_every_setting_is_explained():
    of_histories = {"none", "full", "full_shuffled", "tail", "bm25", "memory", "full+memory", "bm25+memory", "zero", "shuffled"}
    assert {*EXPLAINED} == {*of_histories, *off_task.SETTINGS, *OF_FACTS, off_task.ADAPTER}

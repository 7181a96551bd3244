import pytest
from evaluation_results import locomo_like

from deltamem.evaluation.report import examples as module
from deltamem.evaluation.report.examples import examples


def row(index, f1, log_likelihood=-10.0, **more):
    question = {"question": f"question {index}", "answers": [f"gold {index}"], "prediction": f"said {f1}"}
    return {"index": index, "group": "open", **question, "f1": f1, "log_likelihood": log_likelihood, **more}


def names(several):
    return [example.question for example in several]


def test_the_largest_differences():
    memory = [row(0, 0.9), row(1, 0.5), row(2, 0.5), row(3, 0.1), row(4, 0.2, -1.0)]
    none = [row(0, 0.1), row(1, 0.4), row(2, 0.5), row(3, 0.8), row(4, 0.2, -9.0)]
    of_f1, of_likelihood = examples({"memory": memory, "none": none}, ["f1", "log_likelihood"], ["log_likelihood"])
    assert names(of_f1.helped) == ["question 0", "question 1"]
    assert names(of_f1.hurt) == ["question 3"]
    first = of_f1.helped[0]
    assert first.predictions == ("said 0.9", "said 0.1")
    assert first.golds == ("gold 0",)
    assert first.figures == {"f1": (0.9, 0.1), "log_likelihood": (-10.0, -10.0)}
    assert names(of_likelihood.helped) == ["question 4"]
    assert not of_likelihood.hurt


def test_among_alike_the_likelihood_decides(monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    memory = [row(index, 1.0, -10.0 + index) for index in range(4)]
    none = [row(index, 0.0) for index in range(4)]
    (found,) = examples({"memory": memory, "none": none}, ["f1"], ["log_likelihood"])
    assert names(found.helped) == ["question 3", "question 2"]
    (found,) = examples({"memory": none, "none": memory}, ["f1"], ["log_likelihood"])
    assert names(found.hurt) == ["question 3", "question 2"]


def test_facts_have_a_choice():
    fact = {"question": "Who?", "answer": "Anna", "group": "value"}
    memory, none = (
        [{"index": 0, **fact, "choice": choice, "recall": right}] for choice, right in (("Anna", 1.0), ("Bob", 0.0))
    )
    (found,) = examples({"memory": memory, "none": none}, ["recall"], [])
    assert (found.helped[0].golds, found.helped[0].predictions) == (("Anna",), ("Anna", "Bob"))


def test_long_texts_are_cut():
    memory, none = [row(0, 1.0, question="why " * 1000)], [row(0, 0.0, question="why " * 1000)]
    (found,) = examples({"memory": memory, "none": none}, ["f1"], [])
    assert len(found.helped[0].question) < 700
    assert found.helped[0].question.endswith("…")


@pytest.mark.parametrize("settings", [("none", "full"), ("memory", "full")])
def test_nothing_without_both(settings):
    assert examples({setting: locomo_like(setting, 10) for setting in settings}, ["f1"], []) == []


def test_nothing_where_nothing_differs():
    rows = locomo_like("none", 10)
    assert examples({"memory": rows, "none": rows}, ["f1"], ["log_likelihood"]) == []

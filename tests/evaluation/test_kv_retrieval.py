import gzip
import json

import pytest

from deltamem.evaluation import kv_retrieval
from deltamem.evaluation.task import Options

OFFICIAL = {
    "ordered_kv_records": [["a54e", "d1ff"], ["9f4a", "703a"], ["52a9", "b2f8"]],
    "key": "9f4a",
    "value": "703a",
}


def written(tmp_path, *records):
    file = tmp_path / "kv_retrieval.jsonl.gz"
    with gzip.open(file, "wt") as opened:
        opened.write("".join(json.dumps(record) + "\n" for record in records))
    return file


def told(task, question):
    """All pairs of a question's history."""
    return {key: value for section in task.histories[question.history].sections for key, value in json.loads(section).items()}


def test_the_official_format(tmp_path):
    (task,) = kv_retrieval.tasks(Options(data=written(tmp_path, OFFICIAL)))
    (question,) = task.questions
    assert told(task, question) == {"a54e": "d1ff", "9f4a": "703a", "52a9": "b2f8"}
    assert question.golds == ("703a",)
    assert "9f4a" in question.prompt
    assert set(question.wrong[:2]) == {"d1ff", "b2f8"}  # the values of the other keys, and then values of none
    assert len({*question.wrong} - {"703a"}) == 9


@pytest.mark.parametrize("pairs", [1, 4, 75])
def test_generated_pairs(pairs):
    (task,) = kv_retrieval.tasks(Options(facts=(pairs,), episodes=3))
    assert task.name == f"kv_retrieval-{pairs}"
    for question in task.questions:
        all_told = told(task, question)
        assert len(all_told) == len(task.histories[question.history].passages) == pairs
        assert all_told[question.query] == question.golds[0]
        assert len({*question.wrong} - {*question.golds}) == 9
        assert len({*question.wrong} & {*all_told.values()}) == min(9, pairs - 1)


def test_a_record_is_of_the_seed_and_its_number():
    def drawn(**options):
        (task,) = kv_retrieval.tasks(Options(facts=(4,), **options))
        return {question.number: (question, task.histories[question.history]) for question in task.questions}

    assert drawn(episodes=6, limit=2).items() <= drawn(episodes=6).items()
    assert drawn(episodes=3)[1] != drawn(episodes=3, seed=1)[1]


@pytest.mark.parametrize(
    ("prediction", "accuracy"), [("703A", 1.0), ('The value is "703a".', 1.0), ("703", 0.0), ("", 0.0), ("703b a", 0.0)]
)
def test_the_score(tmp_path, prediction, accuracy):
    (task,) = kv_retrieval.tasks(Options(data=written(tmp_path, OFFICIAL)))
    assert task.judge(task.questions[0], prediction) == {"accuracy": accuracy}


@pytest.mark.parametrize(
    "record", [{**OFFICIAL, "value": "d1ff"}, {**OFFICIAL, "ordered_kv_records": ["a54e"]}, {"key": "9f4a"}, ["9f4a"], 7]
)
def test_other_formats_are_refused(tmp_path, record):
    with pytest.raises(ValueError, match=r"line 2: .*(is missing|is not accepted); give"):
        kv_retrieval.tasks(Options(data=written(tmp_path, OFFICIAL, record)))


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="--facts 0 is too few"):
        kv_retrieval.tasks(Options(facts=(4, 0)))

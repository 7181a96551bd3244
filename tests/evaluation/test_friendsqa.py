import json

import pytest

from deltamem.evaluation import friendsqa
from deltamem.evaluation.task import Options

LINES = [{"speakers": ["Ross Geller"], "utterance": f"Line {number} ."} for number in range(9)]
LINES[1] = {"speakers": ["Monica Geller", "Joey Tribbiani"], "utterance": "Hey !"}
ASKED = [
    {
        "question": "Who waits ?",
        "answers": [{"answer_text": "Joey"}, {"answer_text": "Joey Tribbiani"}, {"answer_text": "Joey"}],
    },
    {"question": "What is said ?", "answers": [{"answer_text": "Hey !"}]},
]
SCENE = {"title": "s01", "paragraphs": [{"utterances:": LINES, "qas": ASKED}]}
OTHER = {"title": "s02", "paragraphs": [{"utterances:": LINES[:1], "qas": ASKED[1:]}]}


def made(folder, scenes):
    file = folder / "friendsqa.json"
    file.write_text(json.dumps({"data": scenes}))
    (task,) = friendsqa.tasks(Options(data=file))
    return task


def test_scenes_and_questions(tmp_path):
    task = made(tmp_path, [SCENE, OTHER])
    history = task.histories["0"]
    assert history.passages[:2] == ("Ross Geller: Line 0 .", "Monica Geller, Joey Tribbiani: Hey !")
    assert history.sections == ("\n".join(history.passages[:8]), "Ross Geller: Line 8 .")
    assert [(question.number, question.history) for question in task.questions] == [(0, "0"), (1, "0"), (2, "1")]
    assert task.questions[0].golds == ("Joey", "Joey Tribbiani")
    assert task.questions[0].prompt.endswith("Question: Who waits ?\nShort answer:")
    assert task.questions[0].query == "Who waits ?"
    assert task.judge(task.questions[0], "Joey Tribbiani") == {"em": 1.0, "f1": 1.0}
    assert task.judge(task.questions[1], "Hey Joey") == {"em": 0.0, "f1": pytest.approx(2 / 3)}
    assert [*task.metrics] == ["em", "f1", "log_likelihood"]


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"utterances:": [{"speakers": [], "utterance": "Hey !"}]}, "speakers"),
        ({"utterances:": None}, "utterances:"),
        ({"qas": [{"question": "Who ?", "answers": []}]}, "answers"),
    ],
)
def test_another_format_is_refused(tmp_path, part, field):
    scene = {"paragraphs": [{**SCENE["paragraphs"][0], **part}]}
    with pytest.raises(ValueError, match=rf"record 1: .*{field}.*; give"):
        made(tmp_path, [scene])

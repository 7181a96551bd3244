import json

import pytest

from deltamem.evaluation import gpqa
from deltamem.evaluation.scoring import Score
from deltamem.evaluation.task import Options

RECORD = {
    "Question": "Which particle has no charge? ",
    "Correct Answer": "the neutron\n",
    "Incorrect Answer 1": "the proton",
    "Incorrect Answer 2": "the electron",
    "Incorrect Answer 3": "the muon",
    "Explanation": "...",
}


def made(tmp_path, *records):
    file = tmp_path / "gpqa_diamond.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    (task,) = gpqa.tasks(Options(data=file))
    return task.questions


def test_a_question(tmp_path):
    (question,) = made(tmp_path, RECORD).values()
    # By sha256sum, the question, a line break and the option are: 1e8f (muon), 4063 (proton), 4d9e (neutron), b351 (electron).
    prompt = (
        "What is the correct answer to this question:Which particle has no charge?\nChoices:\n"
        "(A) the muon\n(B) the proton\n(C) the neutron\n(D) the electron\nAnswer:"
    )
    assert question.texts == [(prompt, f" ({letter})") for letter in "ABCD"]
    right = question.figures([Score(likelihood, False) for likelihood in (-2.0, -3.0, -1.0, -4.0)])
    wrong = question.figures([Score(likelihood, False) for likelihood in (-1.0, -2.0, -3.0, -4.0)])
    assert (right["acc"], wrong["acc"]) == (1.0, 0.0)


def test_the_order_is_of_the_texts_not_of_the_columns(tmp_path):
    moved = {**RECORD, "Incorrect Answer 1": RECORD["Incorrect Answer 3"], "Incorrect Answer 3": RECORD["Incorrect Answer 1"]}
    first, second = made(tmp_path, RECORD, moved).values()
    assert first == second


def test_the_right_answer_is_anywhere(tmp_path):
    golds = [question.gold for question in made(tmp_path, *({**RECORD, "Question": f"{n}?"} for n in range(200))).values()]
    assert all(30 < golds.count(place) < 70 for place in range(4))


@pytest.mark.parametrize("record", [{**RECORD, "Correct Answer": None}, {"Question": "Which?"}, ["Which?"]])
def test_other_formats_are_refused(tmp_path, record):
    with pytest.raises(ValueError, match=r"line 2: .*(is missing|is not accepted); give"):
        made(tmp_path, RECORD, record)

import json

import pytest
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation import dialogue
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options

CITIES = ("Oslo", "Rome", "Bergen", "Paris", "Turin", "Ghent", "Leeds", "Porto", "Lyon", "Graz", "Trier")


def record(*said, turn=0, **facts):
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    return {"messages": messages, "facts": [fact(slot, value, turn) for slot, value in facts.items()]}


def fact(slot, value, turn=0):
    return {"slot": slot, "value": value, "turn": turn}


RECORDS = [record(f"A trip to {city} , please .", "Okay", pickup_city=city, people="2") for city in CITIES]


def made(folder, records=RECORDS, **options):
    file = folder / "dialogue.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    (task,) = dialogue.tasks(Options(data=file, **options))
    return task


def test_slots_are_asked_among_values_of_other_dialogues(tmp_path):
    task = made(tmp_path)
    assert [question.golds[0] for question in task.questions] == [*CITIES]  # and none of the people, of whom there is one value
    for place, question in enumerate(task.questions):
        assert question.prompt == "Remind me, what was the pickup city? Answer with that alone."
        assert task.histories[question.history].messages == RECORDS[place]["messages"]
        assert len({*question.wrong}) == 9
        assert {*question.wrong} < {*CITIES} - {question.golds[0]}
    assert task.judge(task.questions[0], "oslo.") == {"em": 1.0, "f1": 1.0}
    assert task.ranked_per_token


def test_candidates_are_of_the_seed(tmp_path):
    drawn = [[question.wrong for question in made(tmp_path, seed=seed).questions] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "changed",
    [
        record("A trip , please .", "Okay", pickup_city="Oslo"),  # not in the text
        record("A trip , please .", "To Oslo ?", pickup_city="Oslo"),  # not said by the turn of the fact
        record("From Osloer Strasse , please .", pickup_city="Oslo"),  # in a longer word
        record("From Rome to Oslo , Leeds and Graz", pickup_city="Oslo"),  # too few others that are not in the text
        # two values in one turn
        {**record("From Rome to Oslo"), "facts": [fact("pickup_city", city) for city in ("Oslo", "Rome")]},
        # the newest is in other words
        {**record("From Rome", "Okay", "No"), "facts": [fact("pickup_city", "Rome"), fact("pickup_city", "Milan", 2)]},
    ],
)
def test_what_cannot_be_told_apart_is_not_asked(tmp_path, changed):
    asked = {question.history for question in made(tmp_path, [*RECORDS, changed]).questions}
    assert asked == {str(place) for place in range(len(CITIES))}


def test_the_newest_value_is_asked_for(tmp_path):
    said = record("From Rome , please .", "Okay", "No , from Oslo")
    for facts in ([fact("pickup_city", "Rome"), fact("pickup_city", "Oslo", 2)], [fact("pickup_city", "oslo", 2)]):
        for order in (facts, facts[::-1]):
            *_, question = made(tmp_path, [*RECORDS, {**said, "facts": order}]).questions
            assert (question.history, question.golds) == ("11", (facts[-1]["value"],))
            assert not {"Rome", "Oslo"} & {*question.wrong}


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        ("2", "for 2 people", True),
        ("2", "for 2.", True),
        ("2", "at 12", False),
        ("2", "at 2:30", False),
        ("30", "at 2:30", False),
        ("2:30", "at 2:30, please", True),
        ("4", "of 4.5 stars", False),
        ("$25", "it is $25", True),
        ("san", "san jose", True),
        ("s.n", "san jose", False),
    ],
)
def test_whole_words_are_said(value, text, expected):
    assert dialogue.is_said(value, text) == expected


def test_a_part_of_a_longer_word_can_be_a_wrong_candidate(tmp_path):
    """As long as it was not said: of eleven values ten are wrong here, one of them a part of what was said."""
    people = [record(f"for {number} people", people=str(number)) for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)]
    *_, question = made(tmp_path, people).questions
    assert question.golds == ("12",)
    assert {*question.wrong} == set("123456789")


def test_cases_do_not_matter(tmp_path):
    task = made(tmp_path, [*RECORDS, record("to OSLO", pickup_city="oslo")])
    assert "11" in {question.history for question in task.questions}
    assert all(len({value.casefold() for value in (*question.golds, *question.wrong)}) == 10 for question in task.questions)


def test_too_few_values_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no slot of the data has 10 values .*; give more dialogues"):
        made(tmp_path, RECORDS[:9])


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [{"slot": "city", "turn": 0}],
        [{"slot": 3, "value": "Oslo", "turn": 0}],
        [{"slot": "city", "value": "Oslo"}],
        [fact("city", "Oslo", 2)],  # of two messages
    ],
)
def test_another_format_is_refused(tmp_path, facts):
    with pytest.raises(ValueError, match=r"line 1: facts.*; give"):
        made(tmp_path, [{**RECORDS[0], "facts": facts}])


def test_it_can_be_asked(tmp_path):
    task, subject = made(tmp_path), Subject(chat_model(spread=0.3), chat_tokenizer(), system="")
    task.prepare(subject, ["full", "memory"])
    rows = task.answer(subject, ["full", "memory"], [0, 1])
    assert [row["index"] for row in rows["memory"]] == [0, 1]
    assert rows["memory"] != rows["full"]

import dataclasses
import re

import pytest
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation.history import HistoryQuestion
from deltamem.evaluation.ruler import needle, variable_tracking
from deltamem.evaluation.ruler.haystack import NOISE, string_match_all
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options

MODULES = [needle, variable_tracking]


@pytest.fixture(scope="module")
def subject():
    return Subject(chat_model(), chat_tokenizer(), system="")


def prepared(subject, module, tokens=200, **options):
    (task,) = module.tasks(Options(context_tokens=(tokens,), **options))
    task.prepare(subject, ["memory"])
    return task


def lines(task, question):
    return [line for section in task.histories[question.history].sections for line in section.split("\n")]


@pytest.mark.parametrize("facts", [1, 4])
def test_the_needle_asked_for_is_in_the_haystack(subject, facts):
    task = prepared(subject, needle, facts=(facts,), episodes=4)
    for question in task.questions:
        numbers = dict(re.findall(r"magic numbers for (\S+) is: (\d+)\.", "\n".join(lines(task, question))))
        assert len(numbers) == facts
        assert numbers[question.query] == question.golds[0]
        assert {*numbers.values()} <= {*question.golds, *question.wrong}
        assert len({*question.golds, *question.wrong}) == 10


def assigned(text):
    """By hand: what every variable holds."""
    values = {}
    for name, source in re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", text):  # a source is assigned before it is used
        values[name] = source if source.isdigit() else values[source]
    return values


@pytest.mark.parametrize("facts", [1, 4])
def test_the_variables_asked_for_hold_the_value(subject, facts):
    task = prepared(subject, variable_tracking, facts=(facts,), episodes=4, tokens=220)
    for question in task.questions:
        values = assigned("\n".join(lines(task, question)))
        assert len(values) == 5 * facts
        assert {name for name, value in values.items() if value == question.query} == {*question.golds}
        assert question.query in question.prompt
        assert len({*question.wrong} - {*question.golds}) == 9


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("tokens", [120, 200])
def test_a_haystack_is_as_long_as_asked(subject, module, tokens):
    task = prepared(subject, module, tokens, facts=(1,), episodes=3)
    line = len(subject.tokenizer(NOISE + "\n")["input_ids"])
    for question in task.questions:
        told = len(subject.tokenizer("\n".join(lines(task, question)) + "\n")["input_ids"])
        assert tokens - line < told <= tokens
        assert lines(task, question) == list(task.histories[question.history].passages)


@pytest.mark.parametrize("module", MODULES)
def test_what_is_hidden_is_of_the_seed_and_lies_anywhere(subject, module):
    first, again, other = (prepared(subject, module, facts=(1,), episodes=6, seed=seed) for seed in (0, 0, 1))
    assert (first.questions, first.histories) == (again.questions, again.histories)
    assert all(one != another for one, another in zip(first.questions, other.questions, strict=True))
    places = {tuple(line == NOISE for line in lines(first, question)) for question in first.questions}
    assert len(places) > 1


@pytest.mark.parametrize("module", MODULES)
def test_a_haystack_shorter_than_what_it_hides(subject, module):
    with pytest.raises(ValueError, match=rf"--context-tokens 8 is too few: what {module.NAME}-1-8_tokens hides takes \d+"):
        prepared(subject, module, 8, facts=(1,), episodes=2)


@pytest.mark.parametrize(
    ("module", "facts", "message"),
    [
        (needle, 0, "--facts 0 is too few; give 1 or more needles"),
        (needle, 145, "--facts 145 is not accepted; needle has keys for at most 144"),
        (variable_tracking, 0, "--facts 0 is too few; give 1 or more chains"),
    ],
)
def test_numbers_out_of_range(module, facts, message):
    with pytest.raises(ValueError, match=message):
        module.tasks(Options(facts=(facts,)))


@pytest.mark.parametrize(
    ("prediction", "score"),
    [("abcde and FGHIJ", 1.0), ("FGHIJ.", 0.5), ("FGHI J", 0.0), ("", 0.0), ("ABCDE, ABCDE", 0.5)],
)
def test_the_score(prediction, score):
    question = HistoryQuestion(0, "0", "Which?", ("ABCDE", "FGHIJ"))
    assert string_match_all(question, prediction) == {"string_match_all": score}


@pytest.mark.parametrize("module", MODULES)
def test_the_answer_s_start_stands_in_the_assistant_s_turn(subject, module):
    task = prepared(subject, module, facts=(1,), episodes=2)
    question = task.questions[0]
    start = subject.tokenizer(question.answer_start, add_special_tokens=False)["input_ids"]
    without = dataclasses.replace(question, answer_start="")
    assert question.tokens(subject, ["told before"]).tolist() == [*without.tokens(subject, ["told before"]).tolist(), *start]
    assert start


def test_rows_of_the_settings(subject):
    task = prepared(subject, variable_tracking, 120, facts=(1,), episodes=2)
    rows = task.answer(subject, ["memory", "none", "shuffled"], [0, 1])
    for several in rows.values():
        assert [row["index"] for row in several] == [0, 1]
        assert all({"string_match_all", "gold_first", "log_likelihood"} <= {*row} for row in several)

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation import chats
from deltamem.evaluation.history import History
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options
from deltamem.memory.state import DeltaMemState

ANNA = [{"role": "user", "content": "Anna likes teal ."}, {"role": "assistant", "content": "Where is Anna ?"}]
BOB = [{"role": "system", "content": "Remember everything"}, {"role": "user", "content": "Bob lives in Rome ."}]
RECORDS = [
    {
        "messages": ANNA,
        "questions": [
            {
                "question": "What does Anna like ?",
                "answer": ["teal", "teal ."],
                "choices": ["red", "teal", "teal .", "in Oslo"],
            },
            {"question": "Where is Anna ?", "answer": "in Oslo", "choices": ["in Oslo", "Rome"]},
        ],
    },
    {"messages": BOB, "questions": [{"question": "Where is Bob ?", "answer": "Rome", "choices": ["Oslo", "Rome"]}]},
]
SETTINGS = ("none", "full", "tail", "bm25", "memory", "full+memory", "bm25+memory", "zero", "shuffled")


@pytest.fixture(scope="module", params=["token", "message"])
def subject(request):
    return Subject(chat_model(write=request.param, spread=0.3), chat_tokenizer(), system="")


def made(folder, records=RECORDS, **options):
    file = folder / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    (task,) = chats.tasks(Options(data=file, **options))
    return task


def without_choices(record):
    return {**record, "questions": [{**question, "choices": None} for question in record["questions"]]}


def test_questions_with_choices(tmp_path):
    task = made(tmp_path)
    assert [(question.number, question.history, question.prompt) for question in task.questions] == [
        (0, "0", "What does Anna like ?"),
        (1, "0", "Where is Anna ?"),
        (2, "1", "Where is Bob ?"),
    ]
    assert [question.golds for question in task.questions] == [("teal", "teal ."), ("in Oslo",), ("Rome",)]
    assert [question.wrong for question in task.questions] == [("red", "in Oslo"), ("Rome",), ("Oslo",)]
    assert [*task.metrics] == ["em", "f1", "log_likelihood", "gold_first"]
    assert task.histories["0"].messages == ANNA
    assert task.judge(task.questions[0], "The teal.") == {"em": 1.0, "f1": 1.0}
    assert task.judge(task.questions[1], "Oslo") == {"em": 0.0, "f1": pytest.approx(2 / 3)}
    assert task.histories["1"].passages == ("user: Bob lives in Rome .",)  # the system prompt stands in every prompt


def test_questions_without_choices(tmp_path):
    task = made(tmp_path, [without_choices(record) for record in RECORDS], max_new_tokens=7, limit=2)
    assert [*task.metrics] == ["em", "f1", "log_likelihood"]
    assert (len(task), task.max_new_tokens, made(tmp_path).max_new_tokens) == (2, 7, 32)


@torch.no_grad()
def by_hand(subject, chat, prompt, answer, memory):
    """Log-likelihood and number of the tokens of an answer."""
    messages = subject.behind_system([*chat, {"role": "user", "content": prompt}])
    text = subject.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    gold = [*subject.tokenizer(answer, add_special_tokens=False)["input_ids"], 3]
    with subject.model.memory(memory, write=False):
        predicted = subject.model(input_ids=torch.tensor([[*ids, *gold]])).logits[0].log_softmax(-1)
    return sum(predicted[len(ids) - 1 + place, token].item() for place, token in enumerate(gold)), len(gold)


@pytest.mark.parametrize("setting", ["none", "full", "memory", "shuffled", "zero"])
def test_settings_by_hand(tmp_path, subject, setting):
    task = made(tmp_path)
    task.prepare(subject, [setting])
    for question, row in zip(task.questions, task.answer(subject, [setting], range(3))[setting], strict=True):
        own, other = (ANNA, BOB) if question.history == "0" else (BOB, ANNA)
        chat = own if setting == "full" else [message for message in own if message["role"] == "system"]
        told = {"memory": own, "shuffled": other}.get(setting)
        memory = subject.write([told]) if told else subject.model.new_memory()
        scores = [by_hand(subject, chat, question.prompt, text, memory) for text in (question.golds[0], *question.wrong)]
        assert row["log_likelihood"] == pytest.approx(scores[0][0], abs=1e-4)
        (gold, *wrong) = [total / tokens for total, tokens in scores]
        assert row["gold_first"] == float(gold > max(wrong))


def test_candidates_are_ranked_by_the_likelihood_of_a_token(tmp_path):
    task = made(tmp_path)
    assert task._rank([-6.0, -4.0], [4, 2]) == {"gold_first": 1.0}  # -1.5 and -2 a token
    assert task._rank([-6.0, -4.0], [2, 2]) == {"gold_first": 0.0}
    assert task._rank([-6.0], [4]) == {}
    task.ranked_per_token = False
    assert task._rank([-6.0, -4.0], [4, 2]) == {"gold_first": 0.0}


def test_all_settings_and_memories_that_are_kept(tmp_path, subject):
    task = made(tmp_path)
    task.keep_memories(tmp_path / "memory")
    task.prepare(subject, SETTINGS)
    rows = task.answer(subject, SETTINGS, range(3))
    assert {len(several) for several in rows.values()} == {3}
    assert rows["none"] == [pytest.approx(row) for row in rows["zero"]]
    assert len([*(tmp_path / "memory" / "0").iterdir()]) == 1  # turn


def refuses_a_system_prompt_alone(tokenizer):
    condition = "{% if messages | length == 1 and messages[0]['role'] == 'system' %}"
    tokenizer.chat_template = f"{condition}{{{{ raise_exception('no user') }}}}{{% endif %}}{tokenizer.chat_template}"
    return tokenizer


def test_memories_grow_turn_by_turn_and_the_system_prompt_is_of_the_first(tmp_path):
    subject = Subject(chat_model(spread=0.3), refuses_a_system_prompt_alone(chat_tokenizer()), system="")
    task = made(tmp_path, [{**RECORDS[1], "messages": [*BOB, *ANNA[1:], *ANNA]}])
    task.keep_memories(tmp_path / "memory")
    task.prepare(subject, ["memory"])
    task.answer(subject, ["memory"], [0])
    grown = [DeltaMemState.load(file) for file in sorted((tmp_path / "memory" / "0").iterdir())]
    starts = [subject.tokens(task.histories["0"].messages[:count]).ids for count in (3, 5)]
    assert [state.tokens for state in grown] == [[len(ids)] for ids in starts]
    with pytest.raises(ValueError, match="no user"):  # the control
        subject.tokens(BOB[:1])


def test_parts_of_chats():
    def roles(*given):
        chat = [{"role": role, "content": str(place)} for place, role in enumerate(given)]
        return [[int(message["content"]) for message in part] for part in History.of_chat(chat).parts]

    assert roles("system", "user", "assistant", "user", "assistant") == [[0, 1, 2], [3, 4]]
    assert roles("assistant", "user", "user") == [[0, 1], [2]]
    assert roles("system", "assistant") == [[0, 1]]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"answer": "teal"}, "question is missing"),
        ({"question": "Who ?"}, "answer is missing"),
        ({"question": "Who ?", "answer": []}, "at least one entry"),
        ({"question": "Who ?", "answer": "Anna", "choices": ["Bob"]}, r"questions\[0\].choices.*the \(first\) answer, 'Anna'"),
        ({"question": "Who ?", "answer": "Anna", "choices": ["Anna"]}, r"the \(first\) answer, 'Anna', and of others"),
    ],
)
def test_another_format_is_refused(tmp_path, question, message):
    with pytest.raises(ValueError, match=rf"line 1: .*{message}"):
        made(tmp_path, [{"messages": ANNA, "questions": [question]}])


def test_choices_for_some_questions_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 of 3 questions have choices; give choices to all of a file or to none"):
        made(tmp_path, [RECORDS[0], without_choices(RECORDS[1])])


def test_the_example_of_the_page(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    (example,) = re.findall(r"## Your own data\n.*?```json\n(.*?)```", page, re.DOTALL)
    task = made(tmp_path, [json.loads(line) for line in example.splitlines()])
    assert len(task.histories) == 2
    assert "gold_first" in task.metrics

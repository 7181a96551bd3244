import json

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation import arc_easy, lambada
from deltamem.evaluation.arc_easy import MultipleChoice
from deltamem.evaluation.lambada import LastWord
from deltamem.evaluation.off_task import SETTINGS, OffTask, conversation, off_task_settings
from deltamem.evaluation.scoring import Score, Text, score
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options

QUESTIONS = {
    4: LastWord("Anna likes", "teal"),
    7: MultipleChoice("Question: Where is Bob?", ("Oslo", "in Rome", "there"), 1),
    9: LastWord("Bob lives in the", "Rome"),
}


@pytest.fixture(scope="module", params=["token", "message"])
def subject(request):
    return Subject(chat_model(write=request.param, spread=0.3), chat_tokenizer(), system="")


def asked(subject, settings=SETTINGS):
    task = OffTask("mixed", QUESTIONS, {}, {}, seed=5)
    task.prepare(subject, settings)
    rows = task.answer(subject, settings, range(3))
    return {setting: {row["index"]: likelihoods(row) for row in several} for setting, several in rows.items()}


def likelihoods(row):
    return row.get("log_likelihoods") or [row["log_likelihood"]]


def alone(subject, number, setting):
    """The oracle: one text at a time, with a memory made by hand."""
    model = subject.model
    found = []
    for pair in QUESTIONS[number].texts:
        text = Text.from_text(subject.tokenizer, *pair)
        memory = subject.write([conversation(5, number)]) if setting == "filled" else model.new_memory()
        options = {"write": False}
        if setting == "writing":
            options = {"segment_ids": torch.zeros_like(text.ids[None])} if model.active_peft_config.writes_segments else {}
        with model.disable_adapter() if setting == "none" else model.memory(memory, **options):
            found.append(score(subject, [text])[0].log_likelihood)
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_question_has_its_own_memory(subject, setting):
    for number, found in asked(subject)[setting].items():
        assert found == pytest.approx(alone(subject, number, setting), abs=1e-4)


def test_what_a_setting_changes():
    found = asked(Subject(chat_model(spread=0.3), chat_tokenizer(), system=""))
    assert found["zero"][7] == pytest.approx(found["none"][7], abs=1e-5)
    assert found["filled"][7] != pytest.approx(found["none"][7], abs=1e-3)
    assert found["writing"][7] != pytest.approx(found["none"][7], abs=1e-3)


def test_an_adapter_without_a_memory():
    bare = Subject(tiny_backbone(eos_token_id=3, initializer_range=0.3), chat_tokenizer(), system="")
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    prefix = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    for config in (lora, prefix):
        model = get_peft_model(tiny_backbone(eos_token_id=3, initializer_range=0.3), config)
        subject = Subject(model, chat_tokenizer(), system="")
        assert off_task_settings(subject) == ("none", "adapter")
        found = asked(subject, ["none", "adapter"])
        for number in QUESTIONS:
            assert found["none"][number] == pytest.approx(asked(bare, ["none"])["none"][number], abs=1e-4)
            assert found["adapter"][number] != pytest.approx(found["none"][number], abs=1e-3)


def test_conversations_are_of_the_seed_and_the_question():
    assert conversation(0, 1) == conversation(0, 1)
    assert len({str(conversation(*drawn)) for drawn in ((0, 1), (0, 2), (1, 1))}) == 3


def test_a_text_longer_than_the_window(subject):
    task = OffTask("long", {0: LastWord("Anna " * 300, "teal")}, {}, {}, seed=0)
    with pytest.raises(ValueError, match=r"longest text of long takes 301 tokens, .* 256"):
        task.prepare(subject, SETTINGS)


def test_arc_easy_by_hand():
    question = MultipleChoice("Question: Why?", ("ab", "abcdefgh", "abc"), gold=1)
    assert question.texts[1] == ("Question: Why?\nAnswer:", " abcdefgh")
    figures = question.figures([Score(-4.0, False), Score(-8.0, False), Score(-6.0, False)])
    assert (figures["acc"], figures["acc_norm"]) == (0.0, 1.0)  # -4 is likeliest; by characters -2, -1 and -2


def test_lambada_by_hand():
    question = LastWord("the passage and its", "end")
    assert question.texts == [("the passage and its", " end")]
    assert question.figures([Score(-1.5, True)]) == {"acc": 1.0, "log_likelihood": -1.5}


OFFICIAL_ARC = {
    "id": "Mercury_417466",
    "question": "Which one?",
    "choices": {"text": ["this", "that", "none"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
GIVEN_ARC = {"query": "Question: Which one?", "choices": ["this", "that", "none"], "gold": 1}
GIVEN_LAMBADA = {"context": 'It was "his\nown', "continuation": "hand"}


@pytest.mark.parametrize(
    ("module", "record", "expected"),
    [
        (arc_easy, OFFICIAL_ARC, MultipleChoice("Question: Which one?", ("this", "that", "none"), 1)),
        (arc_easy, GIVEN_ARC, MultipleChoice("Question: Which one?", ("this", "that", "none"), 1)),
        (lambada, {"text": 'It was "his\nown hand'}, LastWord('It was "his\nown', "hand")),
        (lambada, GIVEN_LAMBADA, LastWord('It was "his\nown', "hand")),
    ],
)
def test_formats(module, record, expected, tmp_path):
    file = tmp_path / f"{module.NAME}.jsonl"
    file.write_text(json.dumps(record) + "\n")
    for options in (Options(data=file), Options(data_dir=tmp_path)):
        (task,) = module.tasks(options)
        assert task.questions == {0: expected}


@pytest.mark.parametrize(
    ("module", "record"),
    [
        (arc_easy, {**OFFICIAL_ARC, "answerKey": "4"}),
        (arc_easy, {**GIVEN_ARC, "gold": 3}),
        (arc_easy, ["Which one?"]),
        (lambada, {"text": "alone"}),
        (lambada, {"context": "It was"}),
        (lambada, "It was his own hand"),
    ],
)
def test_other_formats_are_refused(module, record, tmp_path):
    file = tmp_path / "data.jsonl"
    good = OFFICIAL_ARC if module is arc_easy else GIVEN_LAMBADA
    file.write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n")
    with pytest.raises(ValueError, match=r"line 2: .*(is missing|is not accepted); give"):
        module.tasks(Options(data=file))


def test_a_sample_is_of_the_seed(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"text": f"the word {number}"}) + "\n" for number in range(50)))

    def chosen(**options):
        (task,) = lambada.tasks(Options(data=file, **options))
        assert all(question.word == str(number) for number, question in task.questions.items())
        return [*task.questions]

    assert chosen(limit=10) == chosen(limit=10)
    assert len(chosen(limit=10)) == 10
    assert chosen(limit=10) != chosen(limit=10, seed=1)
    assert chosen(limit=60) == chosen() == [*range(50)]

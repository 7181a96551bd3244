import dataclasses
import json
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation import hotpotqa, locomo
from deltamem.evaluation.history import History, HistoryQuestion
from deltamem.evaluation.history_task import HistoryTask
from deltamem.evaluation.retrieval import Search
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options, share
from deltamem.memory.state import DeltaMemState

HISTORIES = {
    "a": History(("Anna likes teal .", "Anna lives in Oslo ."), ("Anna likes teal .", "Anna lives in Oslo .", "Hello there")),
    "b": History(("Bob likes red .",), ("Bob likes red .", "Hello there")),
}
QUESTIONS = (
    HistoryQuestion(3, "a", "What does Anna like ?", ("teal",), ("red",), query="likes"),
    HistoryQuestion(5, "a", "Where is Anna ?", ("Oslo", "in Oslo"), ("Rome", "there"), query="lives"),
    HistoryQuestion(8, "b", "What does Bob like ?", ("red",), ("teal",), query="Bob"),
)
SETTINGS = ("none", "full", "tail", "bm25", "memory", "full+memory", "bm25+memory", "zero", "shuffled")


def judge(question, prediction):
    return {"long": float(len(prediction) > 0)}


def task(**options):
    parts = {"name": "told", "histories": HISTORIES, "questions": QUESTIONS, "judge": judge, "metrics": {"long": share("long")}}
    return HistoryTask(**{**parts, "identity": {}, "max_new_tokens": 4, "retrieved": 1, **options})


@pytest.fixture(scope="module", params=["token", "message"])
def subject(request):
    return Subject(chat_model(write=request.param, spread=0.3), chat_tokenizer(), system="")


def asked(subject, settings, places=range(3), **options):
    made = task(**options)
    made.prepare(subject, settings)
    return made.answer(subject, settings, places)


# What stands before a question, and whose history is in the memory.
EXPECTED = {
    "none": ("", None),
    "full": ("{told}\n\n", None),
    "bm25": ("{found}\n\n", None),
    "memory": ("", "own"),
    "bm25+memory": ("{found}\n\n", "own"),
    "zero": ("", None),
    "shuffled": ("", "another's"),
}
FOUND = {3: "Anna likes teal .", 5: "Anna lives in Oslo .", 8: "Bob likes red ."}


@pytest.mark.parametrize("setting", EXPECTED)
@torch.no_grad()
def test_each_setting_by_hand(subject, setting):
    before, whose = EXPECTED[setting]
    for question, row in zip(QUESTIONS, asked(subject, [setting])[setting], strict=True):
        told = "\n\n".join(HISTORIES[question.history].sections)
        content = before.format(told=told, found=FOUND[question.number]) + question.prompt
        chat = [{"role": "system", "content": ""}, {"role": "user", "content": content}]
        prompt = subject.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = subject.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        gold = [*subject.tokenizer(question.golds[0], add_special_tokens=False)["input_ids"], 3]
        memory = subject.model.new_memory()
        if whose is not None:
            key = question.history if whose == "own" else {"a": "b", "b": "a"}[question.history]
            memory = subject.write([HISTORIES[key].messages])
        with subject.model.memory(memory, write=False):
            predicted = subject.model(input_ids=torch.tensor([[*ids, *gold]])).logits[0].log_softmax(-1)
        expected = sum(predicted[len(ids) - 1 + place, token].item() for place, token in enumerate(gold))
        assert row["log_likelihood"] == pytest.approx(expected, abs=1e-4)
        assert row["index"] == question.number
        assert row["long"] == float(len(row["prediction"]) > 0)


def test_the_paper_s_setting_writes_while_it_reads():
    subject = Subject(chat_model(spread=0.3), chat_tokenizer(), system="")
    rows = asked(subject, ["full", "full+memory"])
    for plain, written in zip(rows["full"], rows["full+memory"], strict=True):
        assert written["log_likelihood"] != pytest.approx(plain["log_likelihood"], abs=1e-3)


def test_rows_do_not_depend_on_their_batch(subject):
    together = asked(subject, SETTINGS)
    for place in range(3):
        for setting, (row,) in asked(subject, SETTINGS, [place]).items():
            expected = together[setting][place]
            assert row["prediction"] == expected["prediction"]
            assert row["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=1e-4)


def test_an_adapter_without_memory_and_a_bare_model():
    lora = get_peft_model(
        tiny_backbone(eos_token_id=3, initializer_range=0.3), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    bare = Subject(tiny_backbone(eos_token_id=3, initializer_range=0.3), chat_tokenizer(), system="")
    assert task().settings(bare) == ("none", "full", "bm25")
    rows = asked(Subject(lora, chat_tokenizer(), system=""), ["none", "adapter"])
    for own, without, expected in zip(rows["adapter"], rows["none"], asked(bare, ["none"])["none"], strict=True):
        assert without["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=1e-4)
        assert own["log_likelihood"] != pytest.approx(expected["log_likelihood"], abs=1e-3)


def test_the_first_line_is_judged(subject):
    questions = [dataclasses.replace(QUESTIONS[0], wrong=())]
    made = task(questions=questions, first_line=True)
    assert made._row(questions[0], "teal\nand more", -1.0)["prediction"] == "teal"
    assert "gold_first" not in made.metrics


@pytest.mark.parametrize("chunk", [None, 5])
def test_memories_are_kept_as_they_grow(subject, tmp_path, chunk):
    subject = dataclasses.replace(subject, write_chunk_tokens=chunk)
    made = task()
    made.keep_memories(tmp_path)
    expected = asked(subject, ["memory", "shuffled"])
    assert made.answer(subject, ["memory", "shuffled"], range(3)) == {
        setting: [pytest.approx(row) for row in rows] for setting, rows in expected.items()
    }
    grown = [DeltaMemState.load(file) for file in sorted((tmp_path / "a").iterdir())]
    assert [memory.tokens[0] for memory in grown] == sorted(memory.tokens[0] for memory in grown)
    segments = subject.model.active_peft_config.writes_segments
    assert len(grown) > 2 if chunk else len(grown) == (1 if segments else 2)
    whole = subject.write([HISTORIES["a"].messages])
    assert grown[-1].tokens == whole.tokens
    for name, state in whole.tensors.items():
        torch.testing.assert_close(grown[-1].tensors[name], state)
    assert {place.name for place in tmp_path.iterdir() if place.is_dir()} == {"a"}  # the history that is asked about first


class Counted:
    """Counts the histories that are written."""

    def __init__(self, monkeypatch):
        self.writes = []
        for name in ("write", "write_in_parts"):
            monkeypatch.setattr(Subject, name, self.counting(getattr(Subject, name)))

    def counting(self, write):
        def counted(subject, parts, *more):
            before = len(self.writes)
            self.writes.append(str(parts))
            found = write(subject, parts, *more)
            del self.writes[before + 1 :]  # one may call the other
            return found

        return counted


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_history_is_written_once(subject, tmp_path, monkeypatch, chunk):
    subject, counted = dataclasses.replace(subject, write_chunk_tokens=chunk), Counted(monkeypatch)

    def ask(places):
        made = task()
        made.keep_memories(tmp_path)
        made.prepare(subject, ["bm25+memory"])
        made.answer(subject, ["memory", "bm25+memory"], places)

    ask([0])
    assert len(counted.writes) == 1
    ask([1])  # another process, after a break
    assert len(counted.writes) == 1
    ask([1, 2])
    assert len(counted.writes) == 2
    task().answer(subject, ["memory"], range(3))  # the control: where nothing is kept, both are written again
    assert len(counted.writes) == 4


def test_another_history_of_the_same_key_is_written(subject, tmp_path, monkeypatch):
    counted = Counted(monkeypatch)
    for text in ("Anna likes teal .", "Anna likes red ."):
        made = task(histories={"a": History((text,), (text,))}, questions=QUESTIONS[:1])
        made.keep_memories(tmp_path)
        made.answer(subject, ["memory"], [0])
    assert len(counted.writes) == 2


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"histories": {"a": HISTORIES["a"]}}, ["shuffled"], "told has one history"),
        ({"max_new_tokens": 300}, ["full"], "longest prompt of told in the settings full and full.memory takes 3"),
        ({"histories": {"a": History(("Anna " * 300,), ("Anna",)), "b": HISTORIES["b"]}}, ["memory"], "--write-chunk-tokens"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(subject, options, settings, message):
    with pytest.raises(ValueError, match=message):
        task(**options).prepare(subject, settings)


def test_what_is_found_is_in_the_order_in_which_it_was_told(caplog):
    passages = ["Bob has a cat", "The weather was fine", "Anna has a dog called Rex", "A dog barked at Anna"]
    with caplog.at_level(logging.DEBUG):
        assert Search(passages).find("what is the name of Anna's dog?", 2) == passages[2:]
    assert Search(passages).find("dog", 9) == passages
    assert Search(["1 2", "a", "?"]).find("dog", 2) == ["1 2", "a"]  # none has a word that is searched for


LOCOMO = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Anna",
        "session_2_date_time": "2 pm on 9 May, 2023",
        "session_2": [{"speaker": "Bob", "text": "Bye", "dia_id": "D2:1"}],
        "session_10_date_time": "1 pm on 1 June, 2023",
        "session_10": [{"speaker": "Anna", "text": "Me again", "dia_id": "D10:1"}],
        "session_1_date_time": "1 pm on 8 May, 2023",
        "session_1": [{"speaker": "Anna", "text": "Look!", "blip_caption": "a photo of a dog", "dia_id": "D1:1"}],
    },
    "qa": [
        {"question": "When?", "answer": 2022, "category": 2},
        {"question": "Would she?", "answer": "Likely no; she is shy", "category": 3},
        {"question": "Which?", "answer": "pottery, camping", "category": 1},
        {"question": "Trap?", "adversarial_answer": "never", "category": 5},
        {"question": "Who?", "answer": "Bob", "category": 4},
        {"question": "And who?", "answer": "Anna", "category": 4},
    ],
}


def data(tmp_path, name, records):
    (tmp_path / f"{name}.json").write_text(json.dumps(records))
    return Options(data_dir=tmp_path)


def test_locomo(tmp_path):
    (made,) = locomo.tasks(data(tmp_path, "locomo", [LOCOMO]))
    assert [question.golds for question in made.questions] == [
        ("2022",),
        ("Likely no",),
        ("pottery, camping",),
        ("Bob",),
        ("Anna",),
    ]
    assert [question.number for question in made.questions] == [0, 1, 2, 3, 4]
    assert made.questions[3].wrong == ("Anna",)
    history = made.histories["conv-1"]
    assert history.sections == (
        "Conversation of 1 pm on 8 May, 2023:\nAnna: Look! [shares a photo: a photo of a dog]",
        "Conversation of 2 pm on 9 May, 2023:\nBob: Bye",
        "Conversation of 1 pm on 1 June, 2023:\nAnna: Me again",
    )
    assert history.passages[1] == "(2 pm on 9 May, 2023) Bob: Bye"
    assert made.judge(made.questions[2], "camping, hiking") == {"f1": 0.5}
    assert made.judge(made.questions[3], "It was Bob") == {"f1": 0.5}
    assert (made.sampling.temperature, made.sampling.top_p, made.sampling.top_k, made.seed) == (0.4, 0.9, 10, 42)
    (greedy,) = locomo.tasks(dataclasses.replace(data(tmp_path, "locomo", [LOCOMO]), greedy=True))
    assert greedy.sampling is None


def test_hotpotqa_as_a_file_and_as_the_hub_has_it(tmp_path):
    record = {
        "question": "Is it?",
        "answer": "yes",
        "type": "bridge",
        "context": [["Dog", ["A dog", " barks."]], ["Cat", ["No."]]],
    }
    hub = {**record, "context": {"title": ["Dog", "Cat"], "sentences": [["A dog", " barks."], ["No."]]}}
    other = {**record, "answer": "Oslo"}
    (made,) = hotpotqa.tasks(data(tmp_path, "hotpotqa", [record, hub, other]))
    assert made.histories["0"] == made.histories["1"]
    assert made.histories["0"].sections == ("Dog\nA dog barks.", "Cat\nNo.")
    assert made.questions[0].wrong == ("Oslo",)
    assert made.judge(made.questions[2], "Oslo, Norway") == {"em": 0.0, "f1": pytest.approx(2 / 3)}
    assert made.first_line
    assert made.sampling is None


@pytest.mark.parametrize(("module", "name"), [(locomo, "locomo"), (hotpotqa, "hotpotqa")])
@pytest.mark.parametrize("record", [{"question": "?"}, [1], {"qa": [], "conversation": {}}])
def test_another_format_is_refused(tmp_path, module, name, record):
    with pytest.raises(ValueError, match=r"record 1: .*(is missing|is not accepted); give"):
        module.tasks(data(tmp_path, name, [record]))

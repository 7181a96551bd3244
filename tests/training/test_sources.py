"""Small hand-made files of each format, as its authors publish it."""

import gzip
import json
import sys

import pytest
from tiny_chat import chat_tokenizer

from deltamem.training.data import DataArguments, training_chats
from deltamem.training.documents import Document, DocumentDataset
from deltamem.training.facts import FactEpisodeConfig
from deltamem.training.given import Given
from deltamem.training.records import read_records
from deltamem.training.sources import read_documents

PARAGRAPH = {
    "context": "Anna lives in Oslo.",
    "qas": [
        {
            "id": "1",
            "question": "Where does Anna live?",
            "answers": [{"text": "Oslo", "answer_start": 14}, {"text": "in Oslo"}],
        },
        {"id": "2", "question": "Where does Bob live?", "answers": [], "is_impossible": True},
    ],
}
NOT_ANSWERED = {"unanswerable": True, "extractive_spans": [], "yes_no": None, "free_form_answer": ""}
PAPER = {
    "id": "1",
    "title": "Memory",
    "abstract": "We remember.",
    "full_text": {"section_name": ["Method", None], "paragraphs": [["A matrix.", "Small."], ["No heading."]]},
    "qas": {
        "question": ["What is it?", "Is it small?", "Who?", "Which?"],
        "answers": [
            {"answer": [NOT_ANSWERED, {**NOT_ANSWERED, "unanswerable": False, "extractive_spans": ["A", "matrix"]}]},
            {"answer": [{**NOT_ANSWERED, "unanswerable": False, "yes_no": True}]},
            {"answer": [NOT_ANSWERED]},
            {"answer": [{**NOT_ANSWERED, "unanswerable": False, "free_form_answer": "This one"}]},
        ],
    },
}
HOTPOT = {
    "question": "Who?",
    "answer": "Anna",
    "supporting_facts": [["A", 0]],
    "context": [["A", ["One.", " Two."]], ["B", ["Three."]]],
}
SETS = {
    "squad": (
        [{"title": "People", "paragraphs": [PARAGRAPH]}],
        Document(("Anna lives in Oslo.",), (("Where does Anna live?", "Oslo"),)),
    ),
    "squad rows": (
        [
            {"context": "C", "question": "Q1", "answers": {"text": ["A1"], "answer_start": [0]}},
            {"context": "C", "question": "Q2", "answers": {"text": ["A2"], "answer_start": [0]}},
        ],
        Document(("C",), (("Q1", "A1"), ("Q2", "A2"))),
    ),
    "nq": (
        [
            {
                "question": "who",
                "answers": ["Anna", "Ann"],
                "ctxs": [{"title": "T", "text": "Gold.", "isgold": True}, {"title": "U", "text": "Other.", "isgold": False}],
            }
        ],
        Document(("T: Gold.",), (("who", "Anna"),)),
    ),
    "hotpotqa": ([HOTPOT], Document(("A: One. Two.", "B: Three."), (("Who?", "Anna"),))),
    "hotpotqa rows": (
        [{**HOTPOT, "context": {"title": ["A", "B"], "sentences": [["One.", " Two."], ["Three."]]}}],
        Document(("A: One. Two.", "B: Three."), (("Who?", "Anna"),)),
    ),
    "qasper": (
        [PAPER],
        Document(
            ("Memory\nWe remember.", "Method\nA matrix.\nSmall.", "No heading."),
            (("What is it?", "A, matrix"), ("Is it small?", "Yes"), ("Which?", "This one")),
        ),
    ),
}


def given(records):
    return [Given(record, f"a set, record {number}") for number, record in enumerate(records, 1)]


@pytest.mark.parametrize("name", SETS)
def test_a_set_as_documents(name):
    records, expected = SETS[name]
    assert read_documents(name.split()[0], given(records)) == [expected]


def test_a_document_as_a_chat():
    chat = Document(("One.", "Two."), (("Q", "A"),)).chat([("Q", "A")])
    assert [message["content"] for message in chat["messages"]] == ["One.", "Okay.", "Two.", "Okay.", "Q", "A"]
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant"] * 3
    assert chat["read_turns"] == 1


def test_which_questions_are_asked_depends_on_the_seed():
    document = Document(("P",), tuple((f"Q{n}", f"A{n}") for n in range(20)))
    first, again, other = (DocumentDataset([document], 3, seed)[0] for seed in (0, 0, 1))
    assert first == again != other
    assert first["read_turns"] == 3


@pytest.mark.parametrize("name", ["squad", "qasper", "nq", "hotpotqa"])
def test_records_of_another_format_are_refused(name):
    with pytest.raises(ValueError, match=r"a set, record 1: \S+ is missing; give"):
        read_documents(name, given([{"text": "Hello"}]))


def test_a_set_without_answers_is_refused():
    with pytest.raises(ValueError, match="no record in the format of squad"):
        read_documents("squad", given([{"paragraphs": [{"context": "C", "qas": [{"question": "Q", "answers": []}]}]}]))


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'trivia'.*squad, qasper, nq, hotpotqa"):
        read_documents("trivia", [])


def test_files_and_folders_of_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n\n{"n": 2}\n')
    (tmp_path / "b.json").write_text('{"version": "1", "data": [{"n": 3}]}')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"n": 4}'))
    (tmp_path / "d.json").write_text('[{"n": 5}]')
    (tmp_path / "README.md").write_text("no data")
    assert [record.value["n"] for record in read_records(str(tmp_path))] == [1, 2, 3, 4, 5]
    assert [record.value["n"] for record in read_records(str(tmp_path / "c.jsonl.gz"))] == [4]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"n": 1}\n{', "line 2 is no JSON"),
        ("a.jsonl", "\n", "has no records"),
        ("a.json", "{", "is no JSON"),
        ("a.json", '{"rows": []}', "neither a JSON list"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_records(str(tmp_path / name))


def test_a_file_that_is_not_there_is_not_asked_of_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"there is no file nowhere\.jsonl"):
        read_records("nowhere.jsonl")


def test_the_command_names_a_format_and_a_source(tmp_path):
    (tmp_path / "squad.json").write_text(json.dumps({"data": SETS["squad"][0]}))
    options = DataArguments(data=[f"squad:{tmp_path / 'squad.json'}"], system="Remember.")
    chats = training_chats(options, FactEpisodeConfig(), 1, 0, chat_tokenizer())
    assert len(chats) == 1
    assert [message["content"] for message in chats[0]["messages"]][:2] == ["Remember.", "Anna lives in Oslo."]
    with pytest.raises(ValueError, match=r"there is no file .*nowhere.jsonl"):
        training_chats(DataArguments(data=[str(tmp_path / "nowhere.jsonl")]), FactEpisodeConfig(), 1, 0, chat_tokenizer())

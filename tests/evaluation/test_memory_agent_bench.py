import json

import pytest

from deltamem.evaluation.memory_agent_bench import tasks as memory_agent_bench
from deltamem.evaluation.memory_agent_bench.families import FAMILIES, answer_line, scores
from deltamem.evaluation.memory_agent_bench.films import FILE, Films
from deltamem.evaluation.memory_agent_bench.sections import sections
from deltamem.evaluation.task import Options

LACKING = ("demo", "haystack_sessions", "keypoints", "previous_events", "question_dates", "question_ids", "question_types")


def record(source, context, *pairs):
    """As the official data has it: what a source lacks is null."""
    return {
        "context": context,
        "questions": [question for question, _ in pairs],
        "answers": [answers for _, answers in pairs],
        "metadata": {
            **dict.fromkeys(LACKING),
            "qa_pair_ids": [f"{source}_no{number}" for number in range(len(pairs))],
            "source": source,
        },
    }


FACTS = "Here is a list of facts:\n0. Anna lives in Oslo.\n1. Bob plays chess.\n2. Anna lives in Rome.\n"
RECORDS = [
    record(
        "ruler_qa1_197K", "Document 1:\nNormandy", ("Which country?", ["France", "France"]), ("When?", ["the 10th century"])
    ),
    record("longmemeval_s*", "Chat Time: May\nuser: Hi", ("How many?", ["3"]), ("Who?", ["Bob"])),
    record("eventqa_65536", "CHAPTER I", ("These happened: 1. ...", ["Debbie waited."]), ("Then?", ["It rained."])),
    record("icl_banking77_5900shot_balance", "where is my card\nlabel: 11\n", ("my card?", ["11"]), ("a fee?", ["5"])),
    record("recsys_redial_full", "Dialogue 1:\nUser: Hi", ("User: a comedy?", ["7", "9"]), ("User: old?", ["8"])),
    record("infbench_sum_eng_shots2", "A book.", ("Summarise.", ["A long story."])),
    record("detective_qa", "A story.", ("Who? A. Bob B. Ann", ["B. Ann"]), ("Why? A. Love B. Gold", ["A. Love"])),
    record("factconsolidation_sh_6k", FACTS, ("Where does Anna live?", ["Rome"]), ("What does Bob play?", ["chess"])),
    record("factconsolidation_mh_6k", FACTS, ("Where does she live?", ["Rome"]), ("What is played?", ["chess"])),
]
ENTITIES = {
    "<http://dbpedia.org/resource/The_Mask_(1994_film)>": 7,
    "<http://dbpedia.org/resource/Spider-Man>": 8,
    "Big (1988)": 9,
    "Alien (1979)": 10,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "memory_agent_bench.jsonl").write_text("".join(json.dumps(one) + "\n" for one in RECORDS))
    (tmp_path / FILE).write_text(json.dumps(ENTITIES))
    return tmp_path


def made(folder, **options):
    tasks = memory_agent_bench.tasks(Options(data_dir=folder, **options))
    return {task.name.removeprefix("memory_agent_bench-"): task for task in tasks}


def test_a_task_for_each_family(folder):
    tasks = made(folder)
    assert [*tasks] == [*FAMILIES]
    facts = tasks["factconsolidation"]
    assert [(question.group, question.history) for question in facts.questions] == [
        ("factconsolidation_sh_6k", "0"),
        ("factconsolidation_sh_6k", "0"),
        ("factconsolidation_mh_6k", "1"),
        ("factconsolidation_mh_6k", "1"),
    ]
    question = facts.questions[0]
    assert (question.query, question.golds, question.wrong) == ("Where does Anna live?", ("Rome",), ("chess",))
    assert question.query in question.prompt
    assert "".join(facts.histories["0"].sections) == FACTS.strip()
    assert tasks["ruler_qa"].questions[0].golds == ("France",)
    assert tasks["infbench_sum"].questions[0].wrong == ()
    assert tasks["recsys"].questions[0].golds == ("The Mask", "Big")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (("factconsolidation_mh_6k",), {"factconsolidation": 2}),
        (("factconsolidation", "icl"), {"icl": 2, "factconsolidation": 4}),
    ],
)
def test_some_of_the_sources(folder, source, expected):
    assert {name: len(task) for name, task in made(folder, source=source).items()} == expected


def test_a_limit_is_of_each_task_and_leaves_out_histories(folder):
    task = made(folder, limit=1, source=("factconsolidation",))["factconsolidation"]
    assert len(task.questions) == len(task.histories) == 1
    assert task.questions[0].history in task.histories


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ("Rome\nand more", "Rome"),
        ("I think so.\nANSWER: Rome \nmore", "Rome"),
        ("Answer: Answer: Rome", "Rome"),
        ("", ""),
    ],
)
def test_the_line_with_the_answer(prediction, line):
    assert answer_line(prediction) == line


@pytest.mark.parametrize(
    ("family", "prediction", "golds", "expected"),
    [
        # Contained, once both are normalised; for the best of several golds.
        ("factconsolidation", "It is The Rome, now.", ["Paris", "rome"], {"substring_exact_match": 1.0}),
        ("factconsolidation", "Rom", ["Rome"], {"substring_exact_match": 0.0}),
        ("ruler_qa", "Let me think.\nIt was 1,066", ["1066"], {"substring_exact_match": 1.0}),
        ("longmemeval", "I bought 3 bikes", ["3 bikes"], {"substring_exact_match": 1.0}),
        # Of an event only the line with the answer counts, of a label all of this line.
        ("eventqa", "Debbie waited.\nIt rained.", ["It rained."], {"substring_exact_match": 0.0}),
        ("eventqa", "it rained then", ["It rained."], {"substring_exact_match": 1.0}),
        ("icl", "43\nlabel: 5", ["43"], {"exact_match": 1.0}),
        ("icl", "label: 43", ["43"], {"exact_match": 0.0}),
        ("icl", "143", ["43"], {"exact_match": 0.0}),
        ("detective_qa", "B. Ann", ["B. Ann"], {"exact_match": 1.0, "substring_exact_match": 1.0}),
        ("detective_qa", '{"answer": "B. Ann"}', ["B. Ann"], {"exact_match": 0.0, "substring_exact_match": 1.0}),
        ("detective_qa", "So I say.\nAnswer: B. Ann", ["B. Ann"], {"exact_match": 1.0, "substring_exact_match": 1.0}),
        # Two of three words told, two of four wanted: 2 * 2/3 * 2/4 / (2/3 + 2/4).
        ("infbench_sum", "an old man dies", ["The old man and sea"], {"f1": pytest.approx(4 / 7)}),
    ],
)
def test_scores_by_hand(family, prediction, golds, expected):
    assert scores(FAMILIES[family], prediction, golds) == expected


@pytest.mark.parametrize(
    ("prediction", "recall"),
    [
        ("1. The Mask (1994)\n2. Alien\n3. Big", 1.0),
        ("Here are some: 1. the maks\n2. Alien", 0.5),  # the nearest film to it
        ("1. Alien\n2. Alien\n3. Alien\n4. Alien\n5. Alien\n6. Big", 0.0),  # the sixth
        ("Alien, Big, Spider-Man", 0.5),
        ("1. Spider Man", 0.0),
    ],
)
def test_recommended_films_by_hand(folder, prediction, recall):
    films = Films(folder / FILE)
    assert films.recall(prediction, films.names(["7", "9"])) == recall


def test_films_without_their_names(folder):
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match=r"recsys_redial needs its data: .*entity2id\.json"):
        made(folder)
    assert made(folder, source=("icl",))
    (folder / FILE).write_text('{"Big (1988)": 9}')
    with pytest.raises(ValueError, match="has no film 7"):
        made(folder)


def test_unknown_sources(folder):
    with pytest.raises(ValueError, match="--source icl_nlu is not accepted; the data has ruler_qa1_197K, longmemeval_s"):
        made(folder, source=("icl", "icl_nlu"))
    with (folder / "memory_agent_bench.jsonl").open("a") as file:
        file.write(json.dumps(record("ruler_niah_131K", "One", ("What?", ["7"]))))
    with pytest.raises(
        ValueError, match=r"line 10: metadata\.source: 'ruler_niah_131K' is not accepted; give .* ruler_qa, longmemeval"
    ):
        made(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"context": None},
        {"questions": ["Who?"]},
        {"questions": "Who?"},
        {"answers": ["Rome", "chess"]},
        {"answers": [["Rome"], []]},
        {"metadata": {"source": None}},
        {"metadata": "factconsolidation_sh_6k"},
    ],
)
def test_other_formats_are_refused(tmp_path, change):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(RECORDS[0]) + "\n" + json.dumps({**RECORDS[7], **change}) + "\n")
    with pytest.raises(ValueError, match=r"line 2: .*(is missing|is not accepted); give"):
        memory_agent_bench.tasks(Options(data=file))


@pytest.mark.parametrize("size", [1, 7, 20, 60, 500])
def test_sections_are_the_text(size):
    text = "One. Two words.\n\nA long line without an end that goes on. And on\nShort\n" + "x" * 30 + " end"
    parts = [*sections(text, size)]
    assert "".join(parts) == text
    assert all(len(part) <= size or " " not in part.strip() for part in parts)


def test_sections_end_at_the_best_place():
    assert [*sections("Aa bb.\n\nCc dd. Ee ff.\nGg", 15)] == ["Aa bb.\n\n", "Cc dd. Ee ff.\n", "Gg"]
    assert [*sections("Aa bb. Cc dd.", 8)] == ["Aa bb. ", "Cc dd."]

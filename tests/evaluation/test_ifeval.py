import json

import nltk
import pytest
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation import ifeval
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.summary import summarise_seeds
from deltamem.evaluation.task import Options

RECORDS = [
    {
        "key": 7,
        "prompt": "What does Anna like ? No commas , three sentences .",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"],
        "kwargs": [{}, {"num_sentences": 3, "relation": "at least"}],
    },
    {
        "key": 8,
        "prompt": "Where is Bob ?",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
]
STRICT_THEN_LOOSE = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")


@pytest.fixture(autouse=True)
def punkt(tmp_path, monkeypatch):
    """NLTK's data in its format, without what it learnt of English."""
    folder = tmp_path / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (folder / name).touch()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])


def made(tmp_path, records=RECORDS, **options):
    file = tmp_path / "ifeval.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    (task,) = ifeval.tasks(Options(data=file, **options))
    return task


# By hand: of the first record's two instructions, how many an answer follows; loosely, its first or last line may be left out.
@pytest.mark.parametrize(
    ("said", "figures"),
    [
        ("Teal. Red. Both.", (1.0, [2.0, 2.0], 1.0, [2.0, 2.0])),
        ("Teal. Red.", (0.0, [1.0, 2.0], 0.0, [1.0, 2.0])),
        ("Well, yes.\nTeal. Red. Both.", (0.0, [1.0, 2.0], 1.0, [2.0, 2.0])),
        ("", (0.0, [0.0, 2.0], 0.0, [0.0, 2.0])),
    ],
)
def test_figures_by_hand(tmp_path, said, figures):
    task = made(tmp_path)
    judged = task.task.process_results(task.task.eval_docs[0], [said])
    assert task.figures(judged) == dict(zip(STRICT_THEN_LOOSE, figures, strict=True))


def test_accuracies_by_hand(tmp_path):
    task = made(tmp_path)
    both = ({"index": 0, **_row(0.0, [1.0, 2.0])}, {"index": 1, **_row(1.0, [1.0, 1.0])})
    values = {entry["metric"]: entry["value"] for entry in summarise_seeds(task.name, task.metrics, [{"none": both}])}
    assert values["prompt_level_strict_acc"] == pytest.approx(1 / 2)
    assert values["inst_level_strict_acc"] == pytest.approx(2 / 3)  # of instructions, not a mean of the prompts' shares


def _row(prompt, instructions):
    return dict(zip(STRICT_THEN_LOOSE, (prompt, instructions) * 2, strict=True))


def test_prompts_are_messages_of_a_chat_and_answers_greedy(tmp_path):
    subject = Subject(chat_model(spread=0.3), chat_tokenizer(), system="Remember")
    task = made(tmp_path, max_new_tokens=9)
    task.prepare(subject, ["none"])
    rows = {row["index"]: row for row in task.answer(subject, ["none"], (0, 1))["none"]}
    for number, record in enumerate(RECORDS):
        ids = subject.tokens([{"role": "user", "content": record["prompt"]}], add_generation_prompt=True).ids[None]
        with subject.bare():
            said = subject.model.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert rows[number]["prediction"] == subject.tokenizer.decode(said, skip_special_tokens=True)
        assert rows[number]["question"] == record["prompt"]


def test_the_protocol(tmp_path):
    task = made(tmp_path)
    assert task.task.config.generation_kwargs == {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 1280}
    with pytest.raises(ValueError, match=r"longest request of ifeval takes 1299 tokens, .* 256"):
        task.prepare(Subject(chat_model(), chat_tokenizer()), ["none"])


def test_a_subset_is_of_the_same_records(tmp_path):
    subject = Subject(chat_model(), chat_tokenizer())
    for seed in range(4):
        task = made(tmp_path, max_new_tokens=2, limit=1, seed=seed)
        task.prepare(subject, ["none"])
        (row,) = task.answer(subject, ["none"], (0,))["none"]
        assert row["question"] == RECORDS[row["index"]]["prompt"]


def test_without_the_data_that_counts_sentences(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    with pytest.raises(ValueError, match="needs NLTK's data punkt_tab, which could not be downloaded; run"):
        made(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        {**RECORDS[1], "instruction_id_list": ["punctuation:no_full_stop"]},
        {**RECORDS[1], "kwargs": []},
        {"key": 1, "prompt": "Where?"},
        ["Where?"],
    ],
)
def test_other_formats_are_refused(tmp_path, record):
    with pytest.raises(ValueError, match=r"line 2: .*(is missing|is not accepted); give"):
        made(tmp_path, [RECORDS[0], record])

import json
from functools import partial

import pytest
import torch
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation.lm_eval import task as lm_eval_task
from deltamem.evaluation.lm_eval.model import DeltaMemLM
from deltamem.evaluation.lm_eval.task import LmEvalTask
from deltamem.evaluation.off_task import SETTINGS, conversation
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options
from deltamem.evaluation.tasks import make_tasks
from deltamem.model import DeltaMemModel

SCORED = [("Anna likes", " teal"), ("Bob lives in the", " Rome ."), ("Where is Bob ? Bob is a friend of Anna", " in Oslo")]
ASKED = ["Anna likes", "Where is Bob ? Bob is a friend of Anna and lives in the", "Bob lives"]
SAID = {"until": ["?"], "max_gen_toks": 12, "do_sample": False}


@pytest.fixture(scope="module", params=["token", "message"])
def model(request):
    return chat_model(write=request.param, spread=0.3)


def answers(model, batch_size, memory="writing", kind=DeltaMemLM, **options):
    """Log-likelihoods, what is greedy, and what is said."""
    options = {"memory": memory} if kind is DeltaMemLM else {}
    lm = kind(pretrained=model, tokenizer=chat_tokenizer(), batch_size=batch_size, **options)
    scores = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in SCORED], disable_tqdm=True)
    said = lm.generate_until([Instance("generate_until", {}, (text, SAID), 0) for text in ASKED], disable_tqdm=True)
    return [score for score, _ in scores], said


@pytest.mark.parametrize("memory", ["none", "zero", "writing", "written"])
def test_a_batch_is_answered_as_one_by_one(model, memory):
    if memory == "written":
        memory = Subject(model, chat_tokenizer(), system="").write([conversation(0, 0)])
    scores, said = answers(model, 3, memory)
    alone, said_alone = answers(model, 1, memory)
    assert scores == pytest.approx(alone, abs=1e-4)
    assert said == said_alone


def test_without_writing_it_is_the_bare_backbone(model):
    with model.disable_adapter():
        scores, said = answers(model, 2, kind=HFLM)
    for memory in ("none", "zero"):
        found, found_said = answers(model, 2, memory)
        assert found == pytest.approx(scores, abs=1e-4)
        assert found_said == said


def test_what_a_memory_changes(model):
    written = Subject(model, chat_tokenizer(), system="").write([conversation(0, 0)])
    before = json.dumps([tensor.tolist() for tensor in written.tensors.values()])
    bare, read, writing = (answers(model, 2, memory) for memory in ("none", written, "writing"))
    assert read[0] != pytest.approx(bare[0], abs=1e-3)
    assert writing[1] != bare[1]
    assert json.dumps([tensor.tolist() for tensor in written.tensors.values()]) == before


@torch.no_grad()
def test_writing_is_what_a_model_does_by_itself():
    model, tokenizer = chat_model(spread=0.3), chat_tokenizer()
    scores, said = answers(model, 3)
    for (context, continuation), found in zip(SCORED, scores, strict=True):
        ids, length = tokenizer(context + continuation)["input_ids"], len(tokenizer(continuation)["input_ids"])
        logits = model(torch.tensor([ids])).logits[0, -length - 1 : -1].log_softmax(-1)
        assert found == pytest.approx(logits.gather(1, torch.tensor(ids[-length:])[:, None]).sum().item(), abs=1e-4)
    for text, found in zip(ASKED, said, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert found == tokenizer.decode(out, skip_special_tokens=True).split("?")[0]


def test_an_adapter_that_writes_messages_says_what_the_whole_prompt_wrote():
    model, tokenizer = chat_model(write="message", spread=0.3), chat_tokenizer()
    ids = tokenizer(ASKED[1], return_tensors="pt")["input_ids"]
    memory = model.new_memory()
    with model.memory(memory, segment_ids=torch.zeros_like(ids)):
        model(ids)
    with model.memory(memory, write=False):
        out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert answers(model, 3)[1][1] == tokenizer.decode(out, skip_special_tokens=True).split("?")[0]


def test_another_memory_is_refused():
    with pytest.raises(ValueError, match="memory='full' is not accepted; give one of none, zero, writing"):
        DeltaMemLM(chat_model(), memory="full")


TEXTS = ("Anna likes teal", "the", "a friend", *"123456")
DOCS = [{"text": f"Where is Bob ? {text}", "right": number % 3} for number, text in enumerate(TEXTS)]
CONFIG = {
    "custom_dataset": lambda **_: {"test": Dataset.from_list(DOCS)},
    "test_split": "test",
    "doc_to_text": "{{text}}",
    "num_fewshot": 1,
    "fewshot_split": "test",
    "metadata": {"version": 1},
}
CHOICE = {**CONFIG, "task": "choice", "output_type": "multiple_choice", "doc_to_choice": ["teal", "in Oslo", "Rome"]}
CHOICE |= {"doc_to_target": "right"}
SPEECH = {**CONFIG, "task": "speech", "output_type": "generate_until", "doc_to_target": "Oslo"}
SPEECH |= {"generation_kwargs": {"until": ["?"], "max_gen_toks": 5}, "metric_list": [{"metric": "exact_match"}]}
SPEECH |= {
    "filter_list": [
        {"name": name, "filter": [{"function": "take_first"}, {"function": function}]}
        for name, function in (("lower", "lowercase"), ("upper", "uppercase"))
    ]
}


def harness_task(config):
    return TaskManager(include_defaults=False).load(dict(config))["tasks"][config["task"]]


def ours(config, numbers=range(9), **options):
    task = harness_task(config)
    return LmEvalTask(config["task"], task, numbers, lm_eval_task._metrics(task), {}, **options)


@pytest.mark.parametrize("config", [CHOICE, SPEECH], ids=["choice", "speech"])
@pytest.mark.parametrize("setting", ["none", "writing"])
def test_figures_are_those_of_the_harness(config, setting):
    subject = Subject(chat_model(spread=0.3), chat_tokenizer())
    task = ours(config)
    task.prepare(subject, [setting])
    rows = [row for places in (range(5), range(5, 9)) for row in task.answer(subject, [setting], places)[setting]]
    lm = DeltaMemLM(subject.model, memory=setting, tokenizer=subject.tokenizer, batch_size=3)
    manager = TaskManager(include_defaults=False)
    expected = simple_evaluate(lm, tasks=[harness_task(config)], task_manager=manager, bootstrap_iters=0)
    for sample in expected["samples"][config["task"]]:
        row = next(row for row in rows if row["index"] == sample["doc_id"])
        for metric in sample["metrics"]:
            name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            assert row[name] == sample[metric]
        if config is SPEECH:
            assert row["prediction"] == sample["resps"][0][0]
    names = {"acc", "acc_norm"} if config is CHOICE else {"exact_match,lower", "exact_match,upper"}
    assert {*task.metrics} == names


def test_every_document_has_its_own_conversation_in_memory():
    subject = Subject(chat_model(spread=0.3), chat_tokenizer(), system="")
    speech = {**SPEECH, "num_fewshot": 0}
    task = ours(speech, numbers=(0, 2), seed=5)
    assert task.settings(subject) == SETTINGS
    task.prepare(subject, ["filled"])
    for row in task.answer(subject, ["filled"], (0, 1))["filled"]:
        memory = subject.write([conversation(5, row["index"])])
        ids = subject.tokenizer(DOCS[row["index"]]["text"], return_tensors="pt")["input_ids"]
        with subject.model.memory(memory, write=False):
            out = subject.model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert row["prediction"] == subject.tokenizer.decode(out, skip_special_tokens=True).split("?")[0]


def test_settings_of_other_adapters():
    lora = get_peft_model(tiny_backbone(), LoraConfig(target_modules=["q_proj"]))
    assert ours(CHOICE).settings(Subject(lora, chat_tokenizer())) == ("none", "adapter")
    assert ours(CHOICE).settings(Subject(tiny_backbone(), chat_tokenizer())) == ("none",)


def test_requests_longer_than_the_window():
    task = harness_task({**SPEECH, "generation_kwargs": {"until": [], "max_gen_toks": 250}})
    with pytest.raises(ValueError, match=r"longest request of speech takes \d+ tokens, .* 256"):
        LmEvalTask("speech", task, (0,), {}, {}).prepare(Subject(chat_model(), chat_tokenizer()), ["none"])


def test_answers_can_be_shorter():
    task = harness_task(SPEECH)
    lm_eval_task.capped(task, Options(max_new_tokens=3))
    assert task.config.generation_kwargs["max_gen_toks"] == 3


def test_a_weighted_mean_of_pairs():
    values = torch.tensor([[1.0, 2.0], [3.0, 8.0]]).numpy()
    assert lm_eval_task.weighted("x").aggregate(values) == pytest.approx(0.4)
    assert lm_eval_task.weighted("x").aggregate(values[[[0, 0], [0, 1]]]) == pytest.approx([0.5, 0.4])


def test_a_task_of_no_single_questions_is_refused():
    with pytest.raises(ValueError, match="metrics bleu of speech are not computed per question"):
        ours({**SPEECH, "metric_list": [{"metric": "bleu"}]})


def test_data_of_the_harness_is_its_own(tmp_path):
    with pytest.raises(ValueError, match="--data is not accepted with lm_eval:arc_challenge"):
        lm_eval_task.tasks("arc_challenge", Options(data=tmp_path))


def test_the_harness_finds_the_model_by_its_name(tmp_path):
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    model = chat_model(spread=0.3)
    model.get_base_model().save_pretrained(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "adapter")
    arguments = f"pretrained={tmp_path / 'backbone'},peft={tmp_path / 'adapter'},memory=zero"
    lm = get_model("deltamem").create_from_arg_string(arguments, {"device": "cpu"})
    assert isinstance(lm, DeltaMemLM)
    assert isinstance(lm.model.base_model, DeltaMemModel)
    assert lm.memory == "zero"


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Tasks in a folder, in place of the thousands that the harness has."""
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    choice = {name: value for name, value in CHOICE.items() if name not in ("custom_dataset", "task")}
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")}}
    broken = {**data, "dataset_kwargs": {"data_files": {"test": str(tmp_path / "none.jsonl")}}}
    for config in ({**choice, **data, "task": "some(choice)"}, {**choice, **broken, "task": "without_data"}):
        (tmp_path / f"{config['task']}.yaml").write_text(json.dumps(config))  # JSON is YAML
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False, include_path=tmp_path))


def test_a_task_by_its_name_in_the_harness(listed):
    (task,) = make_tasks(["lm_eval:some(choice)"], Options(limit=2))
    assert task.name == "lm_eval-some_choice_"
    assert len(task) == 2
    assert {name: metric.share for name, metric in task.metrics.items()} == {"acc": True, "acc_norm": True}
    subject = Subject(chat_model(spread=0.3), chat_tokenizer())
    task.prepare(subject, ["none"])
    for row in task.answer(subject, ["none"], (0, 1))["none"]:
        assert row["question"] == DOCS[row["index"]]["text"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is no task lm_eval:nothing; choose one that"),
        ("without_data", "without_data .* cannot be loaded: .*none"),
    ],
)
def test_no_such_task_or_data(listed, name, message):
    with pytest.raises(ValueError, match=message):
        make_tasks([f"lm_eval:{name}"], Options())

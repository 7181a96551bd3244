import gzip
import json
import math
import random

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation import harm
from deltamem.evaluation.harm import HarmTask, compared
from deltamem.evaluation.off_task import conversation
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.task import Options

RAW = "Bob lives in the red Rome ."
CHAT = [{"role": "user", "content": "Where is Anna ?"}, {"role": "assistant", "content": "in Oslo ."}]
TEXTS = {3: RAW, 4: CHAT}


@pytest.fixture(scope="module", params=["token", "message"])
def subject(request):
    return Subject(chat_model(write=request.param, spread=0.3), chat_tokenizer(), system="")


def asked(subject, settings, texts=TEXTS):
    task = HarmTask(texts, {}, seed=5)
    task.prepare(subject, settings)
    return task.answer(subject, settings, range(len(texts)))


@torch.no_grad()
def test_a_filled_memory_by_hand(subject):
    model, tokenizer = subject.model, subject.tokenizer
    chat = [{"role": "system", "content": ""}, *CHAT]
    for row, text in zip(
        asked(subject, ["filled"])["filled"], (RAW, tokenizer.apply_chat_template(chat, tokenize=False)), strict=True
    ):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with model.disable_adapter():
            bare = model(input_ids=ids).logits[0].double().softmax(-1)
        with model.memory(subject.write([conversation(5, row["index"])]), write=False):
            own = model(input_ids=ids).logits[0].double().softmax(-1)
        kl = sum((p * math.log(p / q)) for p, q in zip(bare.flatten().tolist(), own.flatten().tolist(), strict=True))
        assert row["kl"] == pytest.approx(kl / ids.shape[1], abs=1e-4)
        assert row["kl"] > 1e-3
        changed = [place for place in range(ids.shape[1]) if bare[place].argmax() != own[place].argmax()]
        assert row["changed"] == pytest.approx(len(changed) / ids.shape[1])


def test_an_empty_memory_does_no_harm(subject):
    for row in asked(subject, ["zero"])["zero"]:
        assert row["kl"] == pytest.approx(0.0, abs=1e-6)
        assert row["changed"] == 0.0


def test_expectations_by_hand():
    expected = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]])
    found = torch.tensor([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]])
    figures = compared(expected.log(), found.log())
    assert figures["kl"] == pytest.approx(0.25 * math.log(2) / 2)
    assert figures["changed"] == 0.5


def test_the_end_of_a_long_text_is_not_read(monkeypatch):
    subject = Subject(chat_model(spread=0.3), chat_tokenizer(), system="")
    monkeypatch.setattr(harm, "MOST_TOKENS", 4)
    rows = asked(subject, ["filled"], {3: RAW})["filled"]
    assert rows == asked(subject, ["filled"], {3: "Bob lives in the"})["filled"]
    assert rows != asked(subject, ["filled"], {3: "Bob lives in"})["filled"]


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
        PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    ],
)
def test_an_adapter_without_a_memory(config):
    model = get_peft_model(tiny_backbone(eos_token_id=3, initializer_range=0.3), config).eval()
    subject = Subject(model, chat_tokenizer(), system="")
    assert HarmTask(TEXTS, {}, 0).settings(subject) == ("adapter",)
    assert all(row["kl"] > 1e-4 for row in asked(subject, ["adapter"])["adapter"])


def test_a_bare_model_is_refused():
    with pytest.raises(ValueError, match=r"harm compares a model with its bare backbone; give an adapter"):
        HarmTask(TEXTS, {}, 0).settings(Subject(tiny_backbone(), chat_tokenizer()))


def test_texts_of_all_kinds(tmp_path):
    (tmp_path / "a.txt").write_text(f"\n{RAW}\nHello\n \n\nHello there\n\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, [{"text": RAW}, {"messages": CHAT}])))
    (tmp_path / "c.jsonl").write_text('{"prompt": "Hello"}')
    texts = {name: harm.tasks(Options(data=tmp_path / name))[0].texts for name in ("a.txt", "b.jsonl.gz")}
    assert texts == {"a.txt": {0: f"{RAW}\nHello", 1: "Hello there"}, "b.jsonl.gz": {0: RAW, 1: CHAT}}
    for name, message in (
        ("empty.txt", "has no text; give texts with blank lines"),
        ("latin.txt", "cannot be read; give a text in UTF-8"),
        ("c.jsonl", "messages is missing"),
        ("none.txt", "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            harm.tasks(Options(data=tmp_path / name))


def test_the_seed_draws_texts(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(map(str, range(20))))
    (task,) = harm.tasks(Options(data=tmp_path / "a.txt", limit=5, seed=3))
    assert [*task.texts] == sorted(random.Random(3).sample(range(20), 5))

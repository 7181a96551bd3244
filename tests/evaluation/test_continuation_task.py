import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem.evaluation import continuation, cut_chat
from deltamem.evaluation.cut_chat import CutChat
from deltamem.evaluation.subject import Subject
from deltamem.evaluation.summary import summarise_seeds
from deltamem.evaluation.task import Options
from deltamem_cli import app

TOLD = ("Anna likes teal .", "Okay", "Where is Bob ?", "in Rome .", "Bob likes red .", "Okay", "What does Bob like ?", "red")
OTHER = ("Hello there", "Hello", "a friend of Anna lives in Oslo .", "Noted", "What does Anna like ?", "teal .")
SETTINGS = ("none", "full", "full_shuffled", "memory", "shuffled", "zero")


def chat(*contents, system=None):
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *messages]}


CHATS = {2: chat(*TOLD), 5: chat(*OTHER, system="Remember everything"), 6: chat(*TOLD[2:])}


@pytest.fixture(scope="module", params=["token", "message"])
def subject(request):
    return Subject(chat_model(write=request.param, spread=0.3), chat_tokenizer(), system="")


def asked(subject, settings=SETTINGS, places=(0, 1, 2)):
    task = continuation.ContinuationTask(CHATS, {})
    task.prepare(subject, settings)
    return task.answer(subject, settings, places)


def rendered(subject, messages):
    text = subject.tokenizer.apply_chat_template(subject.behind_system(messages), tokenize=False)
    return subject.tokenizer(text, add_special_tokens=False)["input_ids"]


def said(ids):
    """The places of what somebody says, and of what ends it: all behind a header of three tokens up to <|im_end|>."""
    within, places = 0, []
    for place, token in enumerate(ids):
        within = 1 if token == 2 else within and within + 1  # <|im_start|>, role, line break
        if within > 3:
            places.append(place)
        if token == 3:
            within = 0
    return places


@torch.no_grad()
def by_hand(subject, number, setting):
    """The oracle: whole chats, rendered at once, with a memory that `write` makes."""
    numbers = [*CHATS]
    messages, another = CHATS[number]["messages"], CHATS[numbers[(numbers.index(number) + 1) % 3]]["messages"]
    own, read = messages[:-4], messages[-4:]
    system = [message for message in messages if message["role"] == "system"]
    scored = len(rendered(subject, messages)) - len(rendered(subject, own))
    ids = rendered(subject, [*system, *read])
    if setting == "full":
        ids = rendered(subject, messages)
    if setting == "full_shuffled":  # another's messages behind the own system prompt
        without = [message for message in another[:-4] if message["role"] != "system"]
        ids = [*rendered(subject, [*system, *without]), *ids[-scored:]]
    memory = subject.model.new_memory()
    if setting in ("memory", "shuffled"):
        memory = subject.write([own if setting == "memory" else another[:-4]])
    with subject.model.memory(memory, write=False):
        predicted = subject.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    places = [place for place in said(ids) if place >= len(ids) - scored]
    return -sum(predicted[place - 1, ids[place]].item() for place in places) / len(places)


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_by_hand(subject, setting):
    rows = asked(subject, [setting])[setting]
    assert [row["index"] for row in rows] == [*CHATS]
    for row in rows:
        assert row["nats"] == pytest.approx(by_hand(subject, row["index"], setting), abs=1e-4)


def test_settings_differ_and_an_empty_memory_is_the_backbone(subject):
    rows = asked(subject)
    for place in range(3):
        found = {setting: several[place]["nats"] for setting, several in rows.items()}
        assert found["zero"] == pytest.approx(found["none"], abs=1e-5)
        assert len({round(nats, 3) for nats in found.values()}) == 5


def test_rows_do_not_depend_on_their_batch(subject):
    together = asked(subject)
    for place in range(3):
        for setting, (row,) in asked(subject, places=[place]).items():
            assert row == pytest.approx(together[setting][place], abs=1e-4)


def test_long_chats_lose_the_beginning_of_the_history_and_the_end_of_the_continuation(monkeypatch):
    subject = Subject(chat_model(), chat_tokenizer(), system="")
    whole = CutChat.from_messages(subject, CHATS[2]["messages"])
    monkeypatch.setattr(cut_chat, "HISTORY_TOKENS", 7)
    monkeypatch.setattr(cut_chat, "CONTINUATION_TOKENS", 5)
    cut = CutChat.from_messages(subject, CHATS[2]["messages"])
    assert cut.history.ids.tolist() == whole.history.ids[-7:].tolist()
    assert cut.continuation.tolist() == whole.continuation[:5].tolist()
    assert cut.said.tolist() == whole.said[:5].tolist()
    assert len(whole.history.ids) > 7
    assert len(whole.continuation) > 5


@pytest.mark.parametrize("write", ["token", "message"])
def test_a_cut_history_keeps_its_own_system_prompt(monkeypatch, write):
    subject = Subject(chat_model(write=write), chat_tokenizer(), system="")
    monkeypatch.setattr(cut_chat, "HISTORY_TOKENS", 3)
    cut, other = (CutChat.from_messages(subject, CHATS[number]["messages"]) for number in (5, 2))
    head = rendered(subject, CHATS[5]["messages"][:1])
    assert len(head) > 3
    assert cut.head.tolist() == head
    assert cut.written.ids.tolist() == [*head, *cut.history.ids.tolist()]
    assert cut.written.segment_ids.tolist() == [*[-1] * len(head), *cut.history.segment_ids.tolist()]
    for text in (cut.behind(), cut.behind(cut.history.ids), cut.behind(other.history.ids)):
        assert text.ids[: len(head)].tolist() == head
    assert other.head.tolist() != head  # the control: the other chat has the system prompt of the evaluation


@pytest.mark.parametrize("number", [*CHATS])
def test_what_is_said_is_scored_and_the_template_s_headers_are_not(subject, number):
    cut, read = CutChat.from_messages(subject, CHATS[number]["messages"]), CHATS[number]["messages"][-4:]
    expected = rendered(subject, read)[len(rendered(subject, [])) :]
    texts = [f"{message['content']} <|im_end|>" for message in read]
    assert subject.tokenizer.decode(cut.continuation[cut.said]) == " ".join(texts)
    assert 0 < cut.said.sum() == len(cut.continuation) - 4 * 4 < len(expected)  # a header of three tokens, a line break behind
    texts = [cut.behind(), cut.behind(cut.history.ids)]
    assert texts[0].ids[-texts[0].scored :][texts[0].counts].tolist() == cut.continuation[cut.said].tolist()
    assert texts[1].counts.tolist() == texts[0].counts.tolist()


def test_without_a_system_prompt_the_first_token_is_not_scored():
    """Nothing stands before it in the setting none."""
    subject = Subject(chat_model(), chat_tokenizer())
    cut = CutChat.from_messages(subject, CHATS[2]["messages"])
    assert len(cut.head) == 0
    assert cut.behind(cut.head).scored == cut.behind(cut.history.ids).scored == len(cut.continuation) - 1


def test_a_template_that_renders_later_messages_otherwise_is_refused():
    subject = Subject(chat_model(), chat_tokenizer(), system="")
    subject.tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.index }} {{ m['content'] }}\n{% endfor %}"  # each message has its number
    )
    with pytest.raises(ValueError, match=r"differently after a history than after a system prompt alone, so .*; evaluate"):
        CutChat.from_messages(subject, CHATS[2]["messages"])


def test_models_without_a_memory():
    spread = 0.3  # of the weights, so that an adapter drawn at random surely changes something
    bare = Subject(tiny_backbone(eos_token_id=3, initializer_range=spread), chat_tokenizer(), system="")
    lora = get_peft_model(
        tiny_backbone(eos_token_id=3, initializer_range=spread), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    task = continuation.ContinuationTask(CHATS, {})
    assert task.settings(bare) == ("none", "full", "full_shuffled")
    rows = asked(Subject(lora, chat_tokenizer(), system=""), ("none", "adapter"))
    assert rows["adapter"][0]["nats"] != pytest.approx(rows["none"][0]["nats"], abs=1e-4)
    assert rows["none"][0]["nats"] == pytest.approx(asked(bare, ["none"])["none"][0]["nats"], abs=1e-5)


def test_specific_and_bound():
    nats = {"memory": (2.0, 3.0), "shuffled": (2.5, 3.1), "full": (1.0, 2.0), "full_shuffled": (2.0, 4.0), "none": (2.7, 3.7)}
    rows = {setting: [{"index": place, "nats": value} for place, value in enumerate(two)] for setting, two in nats.items()}
    entries = {entry["metric"]: entry for entry in summarise_seeds("continuation", continuation.METRICS, [rows])}
    assert entries["specific"]["setting"] == entries["bound"]["setting"] == "memory"
    assert entries["specific"]["value"] == pytest.approx(0.3)
    assert (entries["specific"]["low"], entries["specific"]["high"]) == (pytest.approx(0.1), pytest.approx(0.5))
    assert entries["bound"]["value"] == pytest.approx(0.3 / 1.5)  # of the means: of the chats it is 0.5 and 0.05
    assert (entries["bound"]["low"], entries["bound"]["high"]) == (pytest.approx(0.05), pytest.approx(0.5))


def test_what_cannot_be_derived_is_left_out():
    rows = {setting: [{"index": 0, "nats": 1.0}] for setting in ("memory", "shuffled", "full", "full_shuffled")}

    def derived(settings):
        entries = summarise_seeds("continuation", continuation.METRICS, [{name: rows[name] for name in settings}])
        return [entry["metric"] for entry in entries if entry["metric"] != "nats"]

    assert derived(["memory", "full"]) == []
    assert derived(["memory", "shuffled"]) == ["specific"]
    assert derived(rows) == ["specific"]  # the own history in the context is worth nothing beside another's


def write_chats(folder, chats):
    file = folder / "chats.jsonl"
    file.write_text("\n".join(map(json.dumps, chats)))
    return Options(data=file)


def test_chats_without_a_history_are_left_out(tmp_path):
    short = chat(*TOLD[:4], system="Remember")
    (task,) = continuation.tasks(write_chats(tmp_path, [short, chat(*TOLD), short, chat(*OTHER)]))
    assert [*task.chats] == [1, 3]
    with pytest.raises(ValueError, match=r"last 4 messages of a chat .* none of the 2 chats has more messages; give longer"):
        continuation.tasks(write_chats(tmp_path, [short, short]))


def test_chats_with_nothing_to_read_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"line 2: messages: .* not accepted; give a chat that says something in its last 4"):
        continuation.tasks(write_chats(tmp_path, [chat(*TOLD), chat(*TOLD[:4], "", " ", "", "")]))
    continuation.tasks(write_chats(tmp_path, [chat(*TOLD), chat(*TOLD[:4], "", " ", "", "Okay")]))


def test_one_chat_is_not_read_with_another_s_memory():
    task = continuation.ContinuationTask({2: CHATS[2]}, {})
    subject = Subject(chat_model(), chat_tokenizer(), system="")
    with pytest.raises(ValueError, match="one chat, and the settings full_shuffled and shuffled need another; leave them out"):
        task.prepare(subject, ["memory", "shuffled"])
    task.prepare(subject, ["memory"])


def test_the_command_prints_what_is_derived(tmp_path):
    tiny_backbone(eos_token_id=3).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    chat_model().save_pretrained(tmp_path / "adapter")
    data = write_chats(tmp_path, [chat(*TOLD), chat(*OTHER)]).data
    arguments = ["eval", "continuation", "--data", data, "--model", tmp_path / "backbone", "--adapter", tmp_path / "adapter"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "specific" in result.output
    entries = json.loads(CliRunner().invoke(app, [*map(str, arguments), "--json"]).stdout)["results"]
    (entry,) = (entry for entry in entries if entry["metric"] == "specific")
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert (entry["task"], entry["setting"], entry["questions"], entry["seeds"]) == ("continuation", "memory", 2, 1)

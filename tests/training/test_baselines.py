import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from tiny import FAMILIES, random_tokens, tiny_backbone
from tiny_chat import chat_tokenizer
from typer.testing import CliRunner

from deltamem.training import baselines, command
from deltamem.training.baselines import ReadCollator, equal_lora_config, equal_prefix_config
from deltamem.training.costs import answer_loss
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.scripts import IGNORED
from deltamem_cli import app

PREFERENCES = {"Anna": "teal", "Bob": "red"}


def chat(name, told, answer):
    history = [{"role": "user", "content": f"{name} likes {told}."}, {"role": "assistant", "content": "Noted."}]
    question = {"role": "user", "content": f"What does {name}{' and the friend of Anna' * (name == 'Bob')} like?"}
    return {"messages": [*history, question, {"role": "assistant", "content": answer}]}


# What the history tells is never the answer, which is the same for each name: the question alone says it.
CHATS = [chat(name, told, PREFERENCES[name]) for name in PREFERENCES for told in ("Oslo", "Rome")]


def trained(model):
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("parameters", [1, 800, 5000])
def test_lora_has_the_number_of_parameters_that_is_nearest(model_type, parameters):
    count = trained(get_peft_model(tiny_backbone(model_type), equal_lora_config(tiny_backbone(model_type), parameters)))
    rank = equal_lora_config(tiny_backbone(model_type), parameters).r
    for other in (rank - 1, rank + 1):
        if other:
            assert abs(count - parameters) <= abs(count / rank * other - parameters)


def test_lora_is_where_the_memory_corrects():
    names = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for name, _ in get_peft_model(tiny_backbone("phi3"), equal_lora_config(tiny_backbone("phi3"), 900)).named_modules()
        if name.endswith(".lora_A.default")
    }
    assert names == {f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in ("qkv", "o")}


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_a_prefix_has_the_number_of_parameters_that_is_nearest(model_type):
    overrides = {"head_dim": 16}  # not what the width over the heads would be
    model = get_peft_model(
        tiny_backbone(model_type, **overrides), equal_prefix_config(tiny_backbone(model_type, **overrides), 900)
    )
    assert trained(model) == 7 * 2 * 2 * 2 * 16  # tokens; keys and values, layers, heads, width: 128 numbers each
    model(input_ids=random_tokens(2, 5))


def test_a_batch_is_questions_and_answers_padded_on_the_right():
    encoder = EpisodeEncoder(chat_tokenizer(), answer_only=True)
    batch = ReadCollator(encoder)(CHATS)
    expected = EpisodeCollator(encoder)(CHATS)["memory"]
    assert {*batch} == {"input_ids", "attention_mask", "labels"}
    for row, left in enumerate(expected["attention_mask"].bool()):
        right = batch["attention_mask"][row].bool()
        assert not right[int(right.sum()) :].any()
        for name in ("input_ids", "labels"):
            assert torch.equal(batch[name][row][right], expected[name][row][left])
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


@pytest.mark.parametrize("make", [equal_lora_config, equal_prefix_config])
def test_padding_does_not_change_the_loss(make):
    model = get_peft_model(tiny_backbone(initializer_range=0.3), make(tiny_backbone(), 800)).eval()
    collator = ReadCollator(EpisodeEncoder(chat_tokenizer(), answer_only=True))
    together = answer_loss(model, collator(CHATS)).answers
    alone = torch.stack([answer_loss(model, collator([chat])).answers for chat in CHATS])
    torch.testing.assert_close(together, alone.sum())


@pytest.fixture
def folders(tmp_path):
    tiny_backbone(initializer_range=0.5, eos_token_id=3).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, CHATS)))
    return tmp_path


def options(folder, more=""):
    given = (
        f"--model {folder / 'backbone'} --data {folder / 'chats.jsonl'} --output_dir {folder / 'output'} --answer_only --r 4"
    )
    fixed = "--per_device_train_batch_size 4 --use_cpu --report_to none --disable_tqdm true --save_strategy no --warmup_steps 0"
    return [*given.split(), *fixed.split(), *more.split()]


@pytest.mark.parametrize(("kind", "rate"), [("lora", 0.05), ("prefix", 0.4)])
def test_the_command_learns_what_the_questions_alone_say(folders, kind, rate):
    more = f"--max_steps 40 --learning_rate {rate} --lr_scheduler_type constant"
    result = CliRunner().invoke(app, ["baseline", kind, *options(folders, more)])
    assert result.exit_code == 0, result.output
    assert "parameters are trained; a δ-mem adapter of these options has" in result.output
    model = AutoPeftModelForCausalLM.from_pretrained(folders / "output").eval()
    collator = ReadCollator(EpisodeEncoder(chat_tokenizer(), answer_only=True))
    answers = answer_loss(model, collator(CHATS))
    assert torch.equal(answers.right, answers.asked)


def test_the_counts_that_are_printed(folders):
    result = CliRunner().invoke(app, ["baseline", "lora", *options(folders, "--max_steps 1 --r 8")])
    # δ-mem: 2 layers of (3 * 8 + 8) * 32 + 8 that read and (32 + 32) * 8 that correct. LoRA: of rank 12, 2 layers of 4 * 32.
    assert "lora: 3,072 parameters are trained; a δ-mem adapter of these options has 3,088." in " ".join(result.output.split())


def test_episodes_are_those_of_training(folders, monkeypatch):
    batches = {}

    def recorded(name, trainer):
        order = [*trainer._get_train_sampler(trainer.train_dataset)]
        batches[name] = [trainer.train_dataset[index]["messages"] for index in order]

    facts = options(folders, "--max_steps 3 --data facts --max_facts 3 --questions 2 --seed 7")
    monkeypatch.setattr(command.DeltaMemTrainer, "train", lambda self, **_: recorded("memory", self))
    monkeypatch.setattr(baselines.BaselineTrainer, "train", lambda self, **_: recorded("lora", self))
    command.main(facts)
    baselines.main(["lora", *facts])
    assert batches["memory"] == batches["lora"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no baseline is given; give lora or prefix"),
        (["dora"], "'dora' is no baseline; give lora or prefix"),
        (["lora", "--views", "memory=1", "context=1"], "give --views memory=1"),
    ],
)
def test_wrong_input(folders, arguments, message):
    result = CliRunner().invoke(app, ["baseline", *arguments, *(options(folders) if arguments[:1] == ["lora"] else [])])
    assert result.exit_code == 2
    assert message in result.stderr

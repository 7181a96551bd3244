import json

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from transformers import AutoModelForCausalLM

from deltamem.training import command
from deltamem.training.episodes import IGNORED, EpisodeCollator, EpisodeEncoder
from deltamem.training.trainer import DeltaMemTrainer, DeltaMemTrainingArguments

QUESTION = {"role": "user", "content": "What does Anna like?"}


def chat(value):
    """An episode that only the history answers: all have the same question."""
    told = [{"role": "user", "content": f"Anna likes {value}."}, {"role": "assistant", "content": "Noted."}]
    return {"messages": [*told, QUESTION, {"role": "assistant", "content": value}]}


CHATS = [chat("teal"), chat("red"), chat("Oslo"), chat("Rome")]


def trainer(folder, model=None, chats=CHATS, **options):
    model = model or chat_model()
    encoder = EpisodeEncoder(chat_tokenizer(), write=model.active_peft_config.write, answer_only=True)
    arguments = DeltaMemTrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            **options,
        }
    )
    return DeltaMemTrainer(model, arguments, train_dataset=chats, data_collator=EpisodeCollator(encoder))


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_the_loss_is_cross_entropy_of_the_answers_plus_the_write_penalty(tmp_path):
    run = trainer(tmp_path, write_penalty=3.0, write_target=0.2)
    model, batch = run.model, run.data_collator(CHATS)
    loss = run.compute_loss(model, batch)

    state = model.new_memory(4)
    with torch.no_grad():
        with model.memory(state):
            model(input_ids=batch["write_input_ids"], attention_mask=batch["write_attention_mask"])
        with model.memory(state, write=False):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    answers = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)
    with model.memory(model.new_memory(4)) as block:
        model(input_ids=batch["write_input_ids"], attention_mask=batch["write_attention_mask"])
    gate = block.write_gates[0].detach()
    torch.testing.assert_close(loss.detach(), answers + 3.0 * (gate - 0.2) ** 2)
    assert 0 < gate < 1


def test_padding_does_not_change_the_loss(tmp_path):
    run = trainer(tmp_path)
    long = chat("teal")
    long["messages"] = [{"role": "user", "content": "Hello there. Hello there."}, *long["messages"]]
    alone = [run.compute_loss(run.model, run.data_collator([episode])) for episode in (CHATS[1], long)]
    together = run.compute_loss(run.model, run.data_collator([CHATS[1], long]))
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-4, rtol=0)  # the penalty is not linear


def test_a_memory_is_learnt(tmp_path):
    options = {"learning_rate": 3e-2, "max_steps": 80, "lr_scheduler_type": "constant", "warmup_steps": 0}
    run = trainer(tmp_path, model=chat_model(spread=0.5), **options)  # weights large enough to be sure of a word
    run.train()
    assert losses(run)[-1] < 0.3  # without its memory no model gets below log(4) for the value: 0.46 a token
    questions = run.data_collator(CHATS)["input_ids"][:, :-3]  # without the answer and the end of its turn
    assert (questions == questions[0]).all()  # so that nothing but the memory can tell them apart


def test_a_resumed_run_continues_the_same_curve(tmp_path):
    torch.manual_seed(0)
    whole = trainer(tmp_path / "whole", chats=CHATS * 8, max_steps=6)
    whole.train()
    torch.manual_seed(0)
    trainer(tmp_path / "cut", chats=CHATS * 8, max_steps=6, save_steps=3).train()
    resumed = trainer(tmp_path / "cut", chats=CHATS * 8, max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    for (name, first), (_, second) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        torch.testing.assert_close(first, second, msg=name)


def test_only_the_adapter_is_trained(tmp_path):
    run = trainer(tmp_path, learning_rate=1e-2)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    run.train()
    changed = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".delta_mem_" in name for name in changed)


def test_segments_are_trained(tmp_path):
    run = trainer(tmp_path, model=chat_model(write="sentence"), learning_rate=1e-2, max_steps=3)
    run.train()
    assert all(torch.tensor(losses(run)).isfinite())


def test_a_model_without_memory_is_refused(tmp_path):
    lora = get_peft_model(tiny_backbone(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="δ-mem adapter, got"):
        DeltaMemTrainer(lora, DeltaMemTrainingArguments(output_dir=str(tmp_path), report_to="none"), train_dataset=CHATS)


@pytest.fixture
def backbone(tmp_path):
    folder = tmp_path / "backbone"
    tiny_backbone(vocab_size=61).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def test_the_train_command(tmp_path, backbone):
    data, output = tmp_path / "chats.jsonl", tmp_path / "output"
    data.write_text("\n".join(map(json.dumps, CHATS)))
    options = (
        f"--model {backbone} --data {data} --output_dir {output} --r 4 --max_steps 2 --per_device_train_batch_size 2 --use_cpu"
    )
    command.main([*options.split(), "--report_to", "none", "--system", "Remember everything."])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), output)
    assert loaded.active_peft_config.r == 4


def test_the_train_command_on_facts_goes_on_with_an_adapter(tmp_path, backbone):
    chat_model().save_pretrained(tmp_path / "adapter")
    options = f"--model {backbone} --adapter {tmp_path / 'adapter'} --output_dir {tmp_path / 'output'} --max_facts 2"
    command.main([*options.split(), *"--max_steps 1 --per_device_train_batch_size 2 --use_cpu --report_to none".split()])
    assert (tmp_path / "output" / "adapter_model.safetensors").exists()

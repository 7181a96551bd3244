import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from transformers import AutoModelForCausalLM

from deltamem.io.shareable import shareable
from deltamem.training import baselines, command
from deltamem.training.data import source_weights
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.loss import EpisodeLoss
from deltamem.training.options import TrainingOptions, load
from deltamem.training.scripts import IGNORED
from deltamem.training.trainer import DeltaMemTrainer, DeltaMemTrainingArguments
from deltamem.training.views import in_views_and_controls

QUESTION = {"role": "user", "content": "What does Anna like?"}


def chat(value):
    """An episode that only the history answers: all have the same question."""
    told = [{"role": "user", "content": f"Anna likes {value}."}, {"role": "assistant", "content": "Noted."}]
    return {"messages": [*told, QUESTION, {"role": "assistant", "content": value}]}


UNRELATED = [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Hello friend!"}]
CHATS = [chat("teal"), chat("red"), chat("Oslo"), chat("Rome")]


def trainer(folder, model=None, chats=CHATS, **options):
    model = model or chat_model()
    eval_dataset = options.pop("eval_dataset", None)
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
    collator = EpisodeCollator(encoder)
    return DeltaMemTrainer(model, arguments, train_dataset=chats, eval_dataset=eval_dataset, data_collator=collator)


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_the_loss_is_cross_entropy_of_the_answers_plus_the_write_penalty(tmp_path):
    run = trainer(tmp_path, write_penalty=3.0, write_target=0.2)
    model, batch = run.model, run.data_collator(CHATS)
    loss = run.compute_loss(model, batch)

    batch, chats = batch["memory"], batch["chats"]
    state = model.new_memory(4)
    with torch.no_grad():
        with model.memory(state):
            model(**chats)
        with model.memory(state, write=False):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    answers = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)
    with model.memory(model.new_memory(4)) as block:
        model(**chats)
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


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A memory that was trained, with what it is evaluated on."""
    options = {"learning_rate": 3e-2, "max_steps": 80, "lr_scheduler_type": "constant", "warmup_steps": 0}
    options |= {"eval_dataset": in_views_and_controls(CHATS, ["memory"], [], seed=0), "per_device_eval_batch_size": 3}
    model = chat_model(spread=0.5)  # weights large enough to be sure of a word
    run = trainer(tmp_path_factory.mktemp("learnt"), model=model, **options)
    run.train()
    return run


def test_a_memory_is_learnt(learnt):
    assert losses(learnt)[-1] < 0.3  # without its memory no model gets below log(4) for the value: 0.46 a token
    questions = learnt.data_collator(CHATS)["memory"]["input_ids"][:, :-3]  # without the answer and the end of its turn
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
    secret = "--hub_token hf_secret --hub-token=hf_secret".split()
    command.main([*options.split(), "--report_to", "none", "--system", "Remember everything.", *secret])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), output)
    assert loaded.active_peft_config.r == 4
    card = (output / "README.md").read_text()
    assert f"Data: `{data.name}`." in card
    shown = " ".join(map(shareable, options.split()))
    assert f"deltamem train {shown} --report_to none --system 'Remember everything.'" in card
    assert str(tmp_path) not in card
    kept = {file.name: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    assert {"training.json", "training_args.bin"} <= kept.keys()
    assert [name for name, content in kept.items() if b"hf_secret" in content] == []


def test_the_trainer_writes_the_adapters_card(tmp_path):
    run = trainer(tmp_path)
    run.save_model()
    run.create_model_card(model_name="mine", license="mit", tags="colours")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert {"colours", "delta-mem", "memory"} <= {*card.data.tags}
    assert "import deltamem" in card.text


def test_the_train_command_on_facts_goes_on_with_an_adapter(tmp_path, backbone):
    chat_model().save_pretrained(tmp_path / "adapter")
    options = f"--model {backbone} --adapter {tmp_path / 'adapter'} --output_dir {tmp_path / 'output'} --max_facts 2"
    command.main([*options.split(), *"--max_steps 1 --per_device_train_batch_size 2 --use_cpu --report_to none".split()])
    assert (tmp_path / "output" / "adapter_model.safetensors").exists()


def test_evaluation_names_every_view_and_control(tmp_path):
    chats = in_views_and_controls(CHATS, ["memory", "context_and_memory"], [], seed=0)
    run = trainer(tmp_path, model=chat_model(spread=0.5), max_steps=1, eval_strategy="steps", eval_steps=1, eval_dataset=chats)
    run.train()
    logged = {name for entry in run.state.log_history for name in entry}
    views = ("memory", "context_and_memory", "zero_memory", "shuffled_memory")
    assert {f"eval_{view}_{figure}" for view in views for figure in ("loss", "recall")} <= logged


def test_recall_is_that_of_the_memory_asked_from(learnt):
    """A memory that was learnt answers; an empty one cannot tell four histories apart, and another's tells the wrong one."""
    metrics = learnt.evaluate()
    assert metrics["eval_memory_recall"] == 1
    assert metrics["eval_zero_memory_recall"] <= 0.25
    assert metrics["eval_shuffled_memory_recall"] == 0
    assert metrics["eval_specific"] == pytest.approx(metrics["eval_shuffled_memory_nats"] - metrics["eval_memory_nats"])
    assert 0 < metrics["eval_specific_low"] <= metrics["eval_specific"] <= metrics["eval_specific_high"]
    assert metrics["eval_memory_loss"] < min(metrics["eval_zero_memory_loss"], metrics["eval_shuffled_memory_loss"])


def test_harm_is_what_a_filled_memory_changes_of_something_unrelated(tmp_path):
    chats = in_views_and_controls(CHATS, ["memory", "unrelated"], [[UNRELATED]], seed=0)
    figures = {}
    for alpha in (8, 1e-6):  # corrections of no size change nothing
        run = trainer(tmp_path, model=chat_model(spread=0.5, alpha=alpha), eval_dataset=chats)
        figures[alpha] = run.evaluate()["eval_harm"]
    assert figures[8] > 1e-3
    assert figures[1e-6] == pytest.approx(0, abs=1e-6)


def test_a_memory_is_trained_on_an_adapted_backbone_and_loads_on_the_plain_one(tmp_path, backbone):
    """The LoRA of a baseline is merged meanwhile."""
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(map(json.dumps, CHATS)))
    common = f"--model {backbone} --data {data} --use_cpu --report_to none --per_device_train_batch_size 2 --max_steps 3"
    baselines.main(["lora", *common.split(), "--output_dir", str(tmp_path / "lora"), "--learning_rate", "1"])
    adapted = load(parse([*common.split(), "--output_dir", "none", "--adaptation", str(tmp_path / "lora")]).adapter)
    plain = load(parse([*common.split(), "--output_dir", "none"]).adapter)
    assert [*adapted.state_dict()] == [*plain.state_dict()]
    name = next(name for name in plain.state_dict() if name.endswith("q_proj.weight"))
    assert not torch.equal(adapted.state_dict()[name], plain.state_dict()[name])
    command.main([*common.split(), "--output_dir", str(tmp_path / "memory"), "--adaptation", str(tmp_path / "lora")])
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), tmp_path / "memory")


@pytest.mark.parametrize("options", [{}, {"decay": "learned"}, {"num_states": 2, "corrections": ("q", "k", "v", "o")}])
def test_statistics_of_the_memory_are_logged(tmp_path, options):
    model = chat_model(spread=0.5, **options)
    run = trainer(tmp_path, model=model, max_steps=1, learning_rate=0.0)
    run.train()
    logged = run.state.log_history[0]

    chats, block_gates = run.data_collator(CHATS)["chats"], []
    state = model.new_memory(4)
    with model.memory(state) as block:
        model(**chats)
        block_gates += block.write_gates
    assert logged["write_gate"] == pytest.approx(block_gates[0].item(), rel=1e-4)
    if "decay" not in options:
        assert logged["keep_gate"] == pytest.approx(1 - logged["write_gate"], rel=1e-4)
    norms = [tensor.norm(dim=(2, 3)).mean().item() for tensor in state.tensors.values()]
    assert logged["state_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    corrections = model.active_peft_config.corrections
    assert {name for name in logged if name.startswith("correction_ratio")} == {
        f"correction_ratio_{role}" for role in corrections
    }
    assert all(0 < logged[f"correction_ratio_{role}"] < 1 for role in corrections)


def test_statistics_leave_the_curve_as_it_is(tmp_path):
    runs = []
    for logged in (True, False):
        torch.manual_seed(0)
        runs.append(trainer(tmp_path, memory_statistics=logged))
        runs[-1].train()
    assert losses(runs[0]) == losses(runs[1])
    assert "write_gate" not in runs[1].state.log_history[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write_chunk_tokens": 0}, "write_chunk_tokens=0 is not accepted"),
        ({"write_chunk_tokens": 8, "gradient_chunks": -1}, "gradient_chunks=-1 is not accepted"),
        ({"gradient_chunks": 2}, "give these, too"),
    ],
)
def test_wrong_chunks_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DeltaMemTrainingArguments(output_dir=str(tmp_path), report_to="none", **options)


def parse(arguments):
    return TrainingOptions.parse(arguments, "deltamem train", None)


def test_a_preset_gives_defaults_that_the_command_line_overrides(tmp_path):
    recipe = parse(["--preset", "facts", "--output_dir", str(tmp_path), "--max_facts", "2", "--report_to", "none"])
    adapter, data, facts, training, *_ = recipe
    assert (adapter.tie_query_init, adapter.decay, data.answer_only) == (True, "none", True)
    assert (facts.max_facts, training.learning_rate) == (2, 4e-3)
    paper = parse(["--preset", "paper", "--output_dir", str(tmp_path), "--report_to", "none"])
    none = parse(["--output_dir", str(tmp_path), "--report_to", "none"])
    none[0].preset = "paper"
    assert list(map(str, paper)) == list(map(str, none))  # the library's own defaults are the paper's
    with pytest.raises(ValueError, match="no preset 'mine'; choose one of paper, facts, talk"):
        parse(["--preset", "mine", "--output_dir", str(tmp_path)])


def test_the_train_command_evaluates_and_resumes_the_same_curve(tmp_path, backbone):
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(map(json.dumps, CHATS * 4)))

    def run(folder, *more):
        options = (
            f"--model {backbone} --data {data} --eval_data {data} --output_dir {tmp_path / folder} --r 4 --max_steps 4 "
            "--per_device_train_batch_size 4 --use_cpu --report_to none --logging_steps 1 --save_steps 2 --eval_strategy steps "
            "--eval_steps 2 --views memory=1 context=1"
        )
        command.main([*options.split(), *more])
        return json.loads((tmp_path / folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]

    def figures(history):
        return [{key: value for key, value in entry.items() if "loss" in key or "recall" in key} for entry in history]

    whole = figures(run("run"))
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert figures(run("run", "--resume_from_checkpoint", "true")) == whole
    assert any("eval_context_recall" in entry for entry in whole)


def test_facts_need_a_number_of_steps(tmp_path, backbone):
    with pytest.raises(ValueError, match="give --max_steps"):
        command.main(f"--model {backbone} --data facts --output_dir {tmp_path / 'output'} --max_steps -1 --use_cpu".split())


def test_chats_that_are_trained_on_are_not_evaluated_on(tmp_path, backbone):
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(map(json.dumps, CHATS)))
    options = f"--model {backbone} --data {data} --output_dir {tmp_path / 'output'} --use_cpu --eval_strategy steps"
    with pytest.raises(ValueError, match="--eval_data"):
        command.main([*options.split(), "--report_to", "none"])


def test_the_train_command_on_talk_with_a_teacher(tmp_path, backbone):
    """The preset on chats of one's own; a text that is raw, and facts in the mix."""
    data, prose = tmp_path / "chats.jsonl", tmp_path / "prose.txt"
    data.write_text("\n".join(map(json.dumps, CHATS)))
    prose.write_text("\n\n".join(["Anna lives in Rome."] * 10))
    options = (
        f"--preset talk --model {backbone} --data talk:{data}=0.7 facts=0.3 --unrelated text:{prose} small_talk --layers 0-1 "
        f"--output_dir {tmp_path / 'output'} --max_steps 2 --reads 3 --r 4 --use_cpu --report_to none --logging_steps 1"
    )
    command.main(options.split())
    config = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), tmp_path / "output").active_peft_config
    assert (config.r, config.num_states, config.layers_to_transform) == (4, 4, [0, 1])


@pytest.mark.parametrize("layers", ["3", "5-2", "a-b", "-1-2"])
def test_wrong_layers_are_refused(tmp_path, layers):
    with pytest.raises(ValueError, match="give the first and the last layer"):
        parse(["--output_dir", str(tmp_path), "--report_to", "none", f"--layers={layers}"])


@pytest.mark.parametrize("data", [["facts=0"], ["facts=nan"], ["facts", "facts"], ["=1"]])
def test_wrong_sources_are_refused(data):
    with pytest.raises(ValueError, match="give SOURCE=WEIGHT"):
        source_weights(data)


def test_sources_have_weights():
    assert source_weights(["facts=0.3", "talk:a=b.jsonl=2e-1", "c.jsonl"]) == {
        "facts": 0.3,
        "talk:a=b.jsonl": 0.2,
        "c.jsonl": 1.0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weight": -1.0}, "teacher_weight=-1.0 is not accepted"),
        ({"answer_weight": 0.0}, "leave nothing to learn"),
        ({"write_from": "backbone", "write_chunk_tokens": 8}, "writes a history at once"),
    ],
)
def test_wrong_weighings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DeltaMemTrainingArguments(output_dir=str(tmp_path), report_to="none", **options)


def test_generated_facts_are_evaluated_in_their_number(tmp_path, backbone):
    options = (
        f"--model {backbone} --output_dir {tmp_path / 'output'} --max_steps 1 --per_device_train_batch_size 2 --use_cpu "
        "--report_to none --eval_strategy steps --eval_steps 1 --eval_episodes 3 --save_steps 1 --max_facts 2"
    )
    command.main(options.split())
    history = json.loads((tmp_path / "output" / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_specific" in entry for entry in history)
    assert len(parse(options.split()).eval_chats(chat_tokenizer())["memory"]) == 3


def test_views_without_a_filled_memory_write_nothing_before_they_read(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    for view, writes in (("context", 0), ("zero_memory", 0), ("in_context", 0), ("memory", 1)):
        written = []
        monkeypatch.setattr(EpisodeLoss, "write", counting(EpisodeLoss.write, written))
        run.compute_loss(run.model, run.data_collator([{**one, "reads": [{"view": view}]} for one in CHATS]))
        monkeypatch.undo()
        assert len(written) == writes, view


def counting(method, calls):
    return lambda *given: calls.append(given) or method(*given)


def test_weights_that_change_need_an_order(tmp_path):
    options = ["--output_dir", str(tmp_path), "--report_to", "none", "--views", "memory=1", "context=0.1:1"]
    with pytest.raises(ValueError, match="give --train_sampling_strategy sequential"):
        parse(options)
    parse([*options, "--train_sampling_strategy", "sequential"])
    parse([*options[:-1], "context=0.1"])

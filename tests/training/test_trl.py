"""TRL's SFTTrainer trains a memory like any PEFT method, and cannot mix documents in it."""

import pytest
import torch
from datasets import Dataset
from nightly import by_day
from peft import PeftModel
from tiny import tiny_backbone, tiny_config
from tiny_chat import chat_model, chat_tokenizer
from trl import SFTConfig, SFTTrainer

VALUES = ("teal", "red", "Oslo", "Rome")
STEPS = {"max_steps": 6, "learning_rate": 3e-2, "logging_steps": 1}


def chat(value):
    question = {"role": "user", "content": f"Anna likes {value}. What does Anna like?"}
    return {"messages": [question, {"role": "assistant", "content": value}]}


def backbone(**options):
    return tiny_backbone(eos_token_id=3, initializer_range=0.3, **options)


def sft(folder, model, config=None, **options):
    arguments = SFTConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "max_steps": 1,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            **options,
        }
    )
    chats = Dataset.from_list([chat(value) for value in VALUES])
    return SFTTrainer(model, args=arguments, train_dataset=chats, processing_class=chat_tokenizer(), peft_config=config)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_config_is_all_it_needs(tmp_path):
    trainer = sft(tmp_path, backbone(), tiny_config(), **STEPS)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert losses(trainer)[-1] < 0.8 * losses(trainer)[0]
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all(".delta_mem_" in name for name in changed)

    trainer.save_model()
    loaded = PeftModel.from_pretrained(backbone(), tmp_path)
    assert loaded.base_model.fingerprint() == trainer.model.base_model.fingerprint()


def test_an_adapter_is_trained_further(tmp_path):
    trainer = sft(tmp_path, chat_model(spread=0.3), **STEPS)
    trainer.train()
    assert losses(trainer)[-1] < 0.8 * losses(trainer)[0]


@pytest.mark.parametrize("half", by_day(["both"], ["autocast", "model", "both"]))
def test_half_precision_leaves_the_adapter_alone(tmp_path, half):
    dtype, options = torch.float32 if half == "autocast" else torch.bfloat16, {"bf16": True} if half != "model" else {}
    """The same curve, but for the backbone's rounding."""
    exact = sft(tmp_path, backbone(), tiny_config(init="zero"), **STEPS)
    exact.train()
    rounded = sft(tmp_path, backbone(dtype=dtype), tiny_config(init="zero"), **STEPS, **options)
    rounded.train()
    assert losses(rounded) == pytest.approx(losses(exact), rel=0.05)
    assert {weight.dtype for weight in rounded.model.parameters() if weight.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    "options",
    [
        {"packing": True},
        {"packing": True, "packing_strategy": "bfd_split", "max_length": 16},
        {"packing": True, "packing_strategy": "wrapped", "padding_free": True},
        {"padding_free": True, "max_length": None},
    ],
    ids=["bfd", "bfd_split", "wrapped_padding_free", "padding_free"],
)
def test_packed_rows_are_refused(tmp_path, options):
    trainer = sft(tmp_path, backbone(), tiny_config(), **options)
    with pytest.raises(NotImplementedError, match="packed rows"):
        trainer.train()


def test_an_adapter_of_segments_is_refused(tmp_path):
    """It would learn nothing: outside model.memory(...) nobody says what the segments are."""
    trainer = sft(tmp_path, backbone(), tiny_config(write="message"))
    with pytest.raises(ValueError, match="nothing would be learnt"):
        trainer.train()

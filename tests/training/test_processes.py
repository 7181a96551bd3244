"""Training in more than one process is accelerate's work; ours is to give it nothing that only one process can do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_backbone
from tiny_chat import chat_tokenizer

from deltamem.training import command

SCRIPT = Path(__file__).with_name("train_tiny.py")
COMMON = (
    "--max_steps 2 --learning_rate 1e-2 --train_sampling_strategy sequential --r 4 --tie_query_init true --answer_only true "
    "--write_chunk_tokens 6 --eval_strategy steps --eval_steps 2 --save_strategy no --use_cpu --report_to none "
    "--disable_tqdm true"
).split()
VALUES = ("teal", "red", "Oslo", "Rome", "Bob", "friend", "1", "2")
LAYERS = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
FSDP = {"sharded.json": LAYERS, "checkpointing.json": {**LAYERS, "activation_checkpointing": True}}
SHARDED = ["--fsdp", "--fsdp_config", "sharded.json"]
# What is done to the model in two processes. Sharding leaves its mark in the environment, so it comes last.
WAYS = {
    "ddp": [],
    "fsdp2": SHARDED,
    "fsdp2_checkpointed": [*SHARDED, "--gradient_checkpointing", "true"],
    "fsdp2_checkpointed_by_fsdp": ["--fsdp", "--fsdp_config", "checkpointing.json"],
}


def chat(value: str) -> dict[str, list[dict[str, str]]]:
    turns = [(f"Anna likes {value}.", "Noted."), ("What does Anna like?", value)]
    roles = ("user", "assistant")
    return {"messages": [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What there is to train, and, by the names of WAYS, what came of it in two processes."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_backbone(vocab_size=61, initializer_range=0.3).save_pretrained(folder / "backbone")
    chat_tokenizer().save_pretrained(folder / "backbone")
    for name, values in {"chats": VALUES, "few": VALUES[:4]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(chat(value)) for value in values))
    for name, config in FSDP.items():
        (folder / name).write_text(json.dumps(config))
    runs = [json.dumps([*arguments(folder, name, batch=2), "--ddp_backend", "gloo", *way]) for name, way in WAYS.items()]
    subprocess.run([sys.executable, SCRIPT, *runs], check=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder


def arguments(folder: Path, name: str, batch: int) -> list[str]:
    chats, few = folder / "chats.jsonl", folder / "few.jsonl"
    files = ["--model", folder / "backbone", "--data", chats, "--eval_data", few, "--output_dir", folder / name]
    return [*map(str, files), "--per_device_train_batch_size", str(batch), *COMMON]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def alone(folder: Path, batch: int) -> dict[str, torch.Tensor]:
    """The adapter that one process trains."""
    name = f"alone_{batch}"
    command.main(arguments(folder, name, batch))
    return trained(folder / name)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_the_adapter_of_one(folder: Path) -> None:
    """The same data and the same global batch."""
    expected, another = alone(folder, batch=4), alone(folder, batch=2)  # the control has half of the batch
    assert max((another[name] - weight).abs().max() for name, weight in expected.items()) > 1e-4
    for way in WAYS:
        found = trained(folder / way)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0, msg=f"{way}: {name}")

"""Another kind of memory: everything around the update rule works with it."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from hebbian import Hebbian
from nightly import by_day
from oracle import told
from peft import PeftModel
from tiny import random_tokens, tiny_adapted, tiny_backbone, tiny_config
from tiny_chat import chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem import ChatSession, DeltaMemConfig, DeltaMemState, register_memory_kind
from deltamem.rule import kind as kinds
from deltamem_cli import app

TESTS = Path(__file__).parents[1]
# By day, the laws that say what is in a memory. Whose it is, the others say, and a block of any kind is one and the same code.
BY_DAY = ("decoding", "segments", "training", "cache_operations")
LAWS = by_day(BY_DAY, (*BY_DAY, "isolation", "scopes", "generate_calls", "shared_caches"))


def hebbian_model(**options):
    return tiny_adapted(tiny_config(kind="hebbian"), **options)


def test_it_passes_the_law_and_the_contract_of_three_families():
    """With the same tests, of which only those about the delta rule itself are left out; by day fewer, of the first family."""
    files = [*(f"law/test_{law}.py" for law in LAWS), "peft/test_peft.py", "contract/test_contract.py"]
    of_families = " or ".join(f"[{name}] or [{name}- or -{name}]" for name in by_day(["llama"], ["llama", "phi3", "gpt_neox"]))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "-k",
            f"{of_families} or test_peft",
            *(TESTS / f for f in files),
        ],
        env={**os.environ, "MEMORY_KIND": "hebbian", "OMP_NUM_THREADS": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.strip().splitlines()[-1].split(" passed")[0].split()[-1]) > 80


def test_an_adapter_and_its_memory_are_saved_and_loaded(tmp_path):
    model = hebbian_model()
    state = told(model)
    model.save_pretrained(tmp_path / "adapter")
    state.save(tmp_path / "memory.safetensors")
    loaded = PeftModel.from_pretrained(tiny_backbone(), tmp_path / "adapter").eval()
    memory = DeltaMemState.load(tmp_path / "memory.safetensors")
    assert loaded.active_peft_config.memory_kind == Hebbian(4, 0.0)
    assert {*memory.snapshot.parts} == {"outer", "keys"}
    ids = random_tokens(1, 5)
    with torch.no_grad():
        with model.memory(state, write=False):
            expected = model(ids).logits
        with loaded.memory(memory, write=False):
            assert torch.equal(loaded(ids).logits, expected)
        assert not torch.equal(loaded(ids).logits, expected)
    with pytest.raises(ValueError, match="does not fit the active adapter"):
        tiny_adapted().memory(memory)


def test_a_session_talks_and_is_inspected(tmp_path):
    model = chat_model(spread=0.5, kind="hebbian")
    chat = ChatSession(model, chat_tokenizer())
    chat.observe("Anna likes teal.")
    said = chat.reply("What does Anna like?", max_new_tokens=3)
    chat.save(tmp_path / "session")
    again = ChatSession.load(tmp_path / "session", model, chat_tokenizer())
    assert again.reply("And Bob?", max_new_tokens=3) == chat.reply("And Bob?", max_new_tokens=3)
    assert isinstance(said, str)
    model.save_pretrained(tmp_path / "adapter")
    for shown in ("adapter", "session"):
        result = CliRunner().invoke(app, ["inspect", str(tmp_path / shown)])
        assert result.exit_code == 0, result.output
    assert "one state" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_kind_is_chosen_by_name():
    with pytest.raises(ValueError, match="kind='lstm' is not accepted; choose one of delta, hebbian"):
        DeltaMemConfig(kind="lstm")
    with pytest.raises(ValueError, match="kind=3 is not accepted"):
        DeltaMemConfig(kind=3)
    with pytest.raises(ValueError, match="there is a kind of memory named 'hebbian' already"):
        register_memory_kind("hebbian", lambda config: Hebbian(config.r, 0.0))
    register_memory_kind("hebbian", Hebbian.from_config)  # the same again
    with pytest.raises(ValueError, match="num_states=2 is not accepted; a Hebbian memory has 1"):
        DeltaMemConfig(kind="hebbian", num_states=2)


def test_a_package_brings_a_kind(monkeypatch):
    monkeypatch.setitem(kinds._MAKERS, "brought", kinds._MAKERS.pop("brought", None))
    monkeypatch.delitem(kinds._MAKERS, "brought")
    entry = EntryPoint("brought", "hebbian:Hebbian.from_config", kinds.ENTRY_POINTS)
    monkeypatch.setattr(kinds, "entry_points", lambda group: [entry] if group == kinds.ENTRY_POINTS else [])
    assert DeltaMemConfig(kind="brought", r=4).memory_kind == Hebbian(4, -1.5)


def test_memories_of_two_kinds_are_not_mixed():
    state = told(tiny_adapted())
    with pytest.raises(ValueError, match="does not fit the active adapter"):
        hebbian_model().memory(state)
    assert hebbian_model().base_model.fingerprint() != tiny_adapted().base_model.fingerprint()

"""An adapter works in the same way however it is loaded, and one for another backbone is refused in every way."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from nightly import by_day
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from tiny import random_tokens, tiny_adapted, tiny_backbone, tiny_config
from tiny_chat import chat_tokenizer
from transformers import AutoModelForCausalLM, pipeline

from deltamem import ChatSession, DeltaMemModel

CHAT = [{"role": "system", "content": "Remember everything."}, {"role": "user", "content": "Anna likes teal."}]
SHORT = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone with its tokenizer, and an adapter for it that names it."""
    root = tmp_path_factory.mktemp("loading")
    tiny_backbone(eos_token_id=3).save_pretrained(root / "backbone")
    chat_tokenizer().save_pretrained(root / "backbone")
    tiny_adapted(backbone=AutoModelForCausalLM.from_pretrained(root / "backbone")).save_pretrained(root / "adapter")
    return root


def from_pretrained(backbone: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), adapter)


def auto_peft(backbone: Path, adapter: Path) -> Any:
    return AutoPeftModelForCausalLM.from_pretrained(adapter)


def auto_model(backbone: Path, adapter: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(adapter)


def load_adapter(backbone: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(backbone)
    model.load_adapter(adapter)
    return model


def as_another_adapter(backbone: Path, adapter: Path) -> Any:
    model = tiny_adapted(tiny_config(r=2), backbone=AutoModelForCausalLM.from_pretrained(backbone))
    model.load_adapter(adapter, "another")
    model.set_adapter("another")
    return model


def in_a_pipeline(backbone: Path, adapter: Path) -> Any:
    return pipeline("text-generation", model=str(adapter), tokenizer=str(backbone)).model


WAYS = [from_pretrained, auto_peft, auto_model, load_adapter, as_another_adapter, in_a_pipeline]
Way = Callable[[Path, Path], Any]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=random_tokens(2, 12)).logits


@pytest.mark.parametrize("way", WAYS)
def test_it_runs_as_it_was_saved(folders: Path, way: Way) -> None:
    model = way(folders / "backbone", folders / "adapter")
    saved = from_pretrained(folders / "backbone", folders / "adapter")
    assert torch.equal(logits(model), logits(saved))
    assert not torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(folders / "backbone")))


@pytest.mark.parametrize("way", WAYS)
def test_it_has_a_memory(folders: Path, way: Way) -> None:
    loaded, tokenizer = way(folders / "backbone", folders / "adapter").eval(), chat_tokenizer()
    chats = [
        ChatSession(DeltaMemModel.of(loaded), tokenizer),
        ChatSession(from_pretrained(folders / "backbone", folders / "adapter"), tokenizer),
    ]
    for chat in chats:
        chat.observe("Anna likes teal.")
        chat.forget_context()
    assert chats[0].memory.fingerprint == chats[1].memory.fingerprint
    assert chats[0].memory.tensors.keys() == chats[1].memory.tensors.keys()
    assert all(torch.equal(state, chats[1].memory.tensors[name]) for name, state in chats[0].memory.tensors.items())
    assert chats[0].reply("What does Anna like?", **SHORT) == chats[1].reply("What does Anna like?", **SHORT)


@pytest.mark.parametrize("way", WAYS)
def test_the_memory_is_read_by_the_models_own_calls(folders: Path, way: Way) -> None:
    model = way(folders / "backbone", folders / "adapter").eval()
    memory = DeltaMemModel.of(model)
    state = memory.new_memory(2)
    empty = logits(model)
    with memory.memory(state):
        logits(model)
    with memory.memory(state, write=False):
        assert not torch.equal(logits(model), empty)
        branches = memory.generate(random_tokens(2, 5), num_beams=2, **SHORT)
    assert torch.equal(logits(model), empty)
    assert branches.shape[0] == 2


def test_a_memory_of_another_adapter_is_refused_after_transformers_own_loading(folders: Path) -> None:
    other = tiny_adapted(seed=5)
    state = other.new_memory(2)
    with other.memory(state):
        logits(other)
    memory = DeltaMemModel.of(auto_model(folders / "backbone", folders / "adapter"))
    with pytest.raises(ValueError, match="was written by the adapter"):
        memory.memory(state)


def test_a_model_without_an_adapter_has_no_memory() -> None:
    with pytest.raises(ValueError, match="no δ-mem adapter"):
        DeltaMemModel.of(tiny_adapted().unload())


@pytest.mark.parametrize("way", [from_pretrained, load_adapter, in_a_pipeline])
def test_a_pipeline_chats_with_a_system_prompt_and_a_memory(folders: Path, way: Way) -> None:
    model, tokenizer = way(folders / "backbone", folders / "adapter").eval(), chat_tokenizer()
    memory = DeltaMemModel.of(model)
    state = memory.new_memory()
    with memory.memory(state):
        answered = pipeline("text-generation", model=model, tokenizer=tokenizer)(CHAT, **SHORT)[0]["generated_text"]
    expected = memory.new_memory()
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with memory.memory(expected):
        output = memory.generate(**prompt, **SHORT)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answered == [*CHAT, {"role": "assistant", "content": answer}]
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in state.tensors.items())


OTHERS = {
    "another family": {"model_type": "qwen3"},
    "another width": {"hidden_size": 48},
    "more layers": {"num_hidden_layers": 3},
    "other weights": {"seed": 4},
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("way", WAYS)
def test_another_backbone_is_refused(folders: Path, tmp_path: Path, way: Way, other: str) -> None:
    tiny_backbone(eos_token_id=3, **OTHERS[other]).save_pretrained(tmp_path / "backbone")
    shutil.copytree(folders / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "backbone")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    with pytest.raises(ValueError, match="this adapter was made for"):
        way(tmp_path / "backbone", tmp_path / "adapter")


@pytest.mark.parametrize("other", OTHERS)
def test_a_refused_load_adapter_changes_nothing(folders: Path, other: str) -> None:
    model = tiny_backbone(**OTHERS[other])
    model.add_adapter(LoraConfig(target_modules=["q_proj"]), "lora")
    before, modules, adapters = logits(model), [type(module) for module in model.modules()], dict(model.peft_config)
    with pytest.raises(ValueError, match="this adapter was made for"):
        model.load_adapter(folders / "adapter", "memory")
    assert torch.equal(logits(model), before)
    assert [type(module) for module in model.modules()] == modules
    assert model.peft_config == adapters
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_transformers_own_loading_takes_one_memory_adapter(folders: Path) -> None:
    model = load_adapter(folders / "backbone", folders / "adapter")
    before = logits(model)
    with pytest.raises(ValueError, match="has δ-mem layers already"):
        model.load_adapter(folders / "adapter", "second")
    assert [*model.peft_config] == ["default"]
    assert torch.equal(logits(model), before)


# What can be done to a model with transformers' own methods, and to a PeftModel.
OF_TRANSFORMERS: dict[str, Callable[[Any, Path], Any]] = {
    "load": lambda model, adapter: model.load_adapter(adapter),
    "add": lambda model, adapter: model.add_adapter(tiny_config()),
    "delete": lambda model, adapter: model.delete_adapter("default"),
    "set": lambda model, adapter: model.set_adapter("default"),
    "disable": lambda model, adapter: model.disable_adapters(),
    "enable": lambda model, adapter: model.enable_adapters(),
    "unload": lambda model, adapter: DeltaMemModel.of(model).unload(),
}
OF_PEFT: dict[str, Callable[[Any, Path], Any]] = {
    "load": lambda model, adapter: model.load_adapter(adapter, "default"),
    "add": lambda model, adapter: model.add_adapter("default", tiny_config()),
    "delete": lambda model, adapter: model.delete_adapter("default"),
    "set": lambda model, adapter: model.set_adapter("default"),
    "disable": lambda model, adapter: model.base_model.disable_adapter_layers(),
    "enable": lambda model, adapter: model.base_model.enable_adapter_layers(),
}


def orders(steps: dict[str, Any]) -> Any:
    """Every pair of steps; by day so many that each step comes first and second, and twice in a row."""
    first = [*steps]
    second = [*first[1:], first[0]]
    return by_day([*zip(first, first, strict=True), *zip(first, second, strict=True)], [*product(first, repeat=2)])


def memory_of(model: Any) -> Any:
    return model if isinstance(model, PeftModel) else DeltaMemModel.of(model)


def works(model: Any, folders: Path) -> None:
    """What was loaded answers and writes as a fresh load does."""
    fresh = from_pretrained(folders / "backbone", folders / "adapter").eval()
    assert torch.equal(logits(model.eval()), logits(fresh))
    state, expected = memory_of(model).new_memory(2), fresh.new_memory(2)
    with memory_of(model).memory(state):
        logits(model)
    with fresh.memory(expected):
        logits(fresh)
    assert state.fingerprint == expected.fingerprint
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in state.tensors.items())
    assert any(tensor.any() for tensor in state.tensors.values())


@pytest.mark.parametrize("order", orders(OF_TRANSFORMERS), ids=" ".join)
def test_after_any_order_transformers_own_loading_loads_again(folders: Path, order: tuple[str, ...]) -> None:
    model = load_adapter(folders / "backbone", folders / "adapter")
    bare = logits(tiny_backbone(eos_token_id=3))
    for step in order:
        with suppress(ValueError):  # there is none, or one is there already
            OF_TRANSFORMERS[step](model, folders / "adapter")
    with suppress(ValueError):
        model.delete_adapter("default")
    assert torch.equal(logits(model), bare)
    model.load_adapter(folders / "adapter")
    works(model, folders)


@pytest.mark.parametrize("order", orders(OF_PEFT), ids=" ".join)
def test_after_any_order_a_peft_model_loads_again(folders: Path, order: tuple[str, ...]) -> None:
    model = from_pretrained(folders / "backbone", folders / "adapter")
    for step in order:
        with suppress(ValueError):
            OF_PEFT[step](model, folders / "adapter")
    with suppress(ValueError):
        model.delete_adapter("default")
    model.load_adapter(folders / "adapter", "default")
    model.set_adapter("default")
    model.base_model.enable_adapter_layers()
    works(model, folders)
    assert torch.equal(logits(model.unload()), logits(tiny_backbone(eos_token_id=3)))


def test_without_taking_off_the_empty_layers_a_second_load_would_be_lost(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_adapter(folders / "backbone", folders / "adapter")
    model.delete_adapter("default")
    monkeypatch.setattr(DeltaMemModel, "_take_off_layers", lambda self: None)
    with pytest.raises((ValueError, KeyError, AssertionError, RuntimeError)):
        model.load_adapter(folders / "adapter")
        works(model, folders)

"""An adapter_config.json may say anything: it is refused before the backbone is touched, or what is unknown has no effect."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import json_values
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from tiny import random_tokens, tiny_adapted, tiny_backbone, tiny_config
from torch import nn

from deltamem import DeltaMemConfig
from deltamem.hook.backbone_identity import check_backbone

FILE = "adapter_config.json"
OTHER_WEIGHTS = [0.01 * (-1) ** i for i in range(32)]


@pytest.fixture
def given_config(saved: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """The folder of an adapter that fits, with another configuration: a text, or what is different in it."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)

    def write(config: Any) -> Path:
        file = tmp_path / FILE
        file.write_text(config if isinstance(config, str) else json.dumps({**json.loads(file.read_text()), **config}))
        return tmp_path

    return write


@cache
def backbone() -> dict[str, Any]:
    """The configuration's description of the backbone."""
    return tiny_adapted().peft_config["default"].backbone


def described(**changes: Any) -> dict[str, Any]:
    return {"backbone": {**backbone(), **changes}}


# What is changed, and what the refusal must say.
HOSTILE: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "r huge": (lambda: {"r": 10**12}, "hidden_size=32"),
    "r beyond int64": (lambda: {"r": 10**30}, "hidden_size=32"),
    "r wider than the model": (lambda: {"r": 33}, "hidden_size=32"),
    "states huge": (lambda: {"num_states": 10**12}, "hidden_size=32"),
    "r and states huge together": (lambda: {"r": 32, "num_states": 17}, "hidden_size=32"),
    "r a text": (lambda: {"r": "8"}, "r='8'"),
    "r none": (lambda: {"r": None}, "r=None"),
    "alpha NaN": (lambda: {"alpha": float("nan")}, "alpha=nan"),
    "alpha infinite": (lambda: {"alpha": float("inf")}, "alpha=inf"),
    "alpha beyond floats": (lambda: {"alpha": 10**400}, "alpha=1000"),
    "beta_bias beyond float32": (lambda: {"beta_bias": 1e300}, "beta_bias=1e+300"),
    "alpha a list": (lambda: {"alpha": [16.0]}, "alpha="),
    "beta_bias a truth value": (lambda: {"beta_bias": True}, "beta_bias=True"),
    "corrections nested": (lambda: {"corrections": [["q"]]}, "corrections="),
    "corrections a mapping": (lambda: {"corrections": {"q": 1}}, "corrections="),
    "write no text": (lambda: {"write": []}, "write=[]"),
    "an init of its own": (lambda: {"init": "__import__('os')"}, "init="),
    "a layer far away": (lambda: {"layers_to_transform": [10**30]}, "layers 0 to 1"),
    "layers nested": (lambda: {"layers_to_transform": [[0]]}, "layers_to_transform="),
    "a pattern of layers": (lambda: {"layers_to_transform": [0], "layers_pattern": "(a+)+$"}, "layers_pattern="),
    "a broken pattern": (lambda: {"layers_to_transform": [0], "layers_pattern": "(("}, "layers_pattern="),
    "a pattern of modules": (lambda: {"target_modules": r"model\.(([a-z]|\.|[0-9])+)+!"}, "target_modules="),
    "all linear modules": (lambda: {"target_modules": "all-linear"}, "target_modules="),
    "the MLP": (lambda: {"target_modules": ["mlp"]}, "'mlp' is no attention module"),
    "attention and the MLP": (lambda: {"target_modules": ["self_attn", "mlp"]}, "'mlp' is no attention module"),
    "a projection": (lambda: {"target_modules": ["self_attn.q_proj"]}, "'self_attn.q_proj' is no attention module"),
    "the head": (lambda: {"target_modules": "lm_head"}, "'lm_head' is no attention module"),
    "something that ends alike": (lambda: {"target_modules": ["xself_attn"]}, "'xself_attn' is no attention module"),
    "no modules": (lambda: {"target_modules": []}, "target_modules=[]"),
    "modules a number": (lambda: {"target_modules": 5}, "target_modules=5"),
    "modules nested": (lambda: {"target_modules": [["self_attn"]]}, "target_modules="),
    "modules a mapping": (lambda: {"target_modules": {"self_attn": 1}}, "target_modules="),
    "a task for another model": (lambda: {"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS'"),
    "a task that is none": (lambda: {"task_type": []}, "task type"),
    "another family": (lambda: described(model_type="qwen3"), "made for the backbone"),
    "another width": (lambda: described(hidden_size=64), "made for the backbone"),
    "a kind of a wrong type": (lambda: described(num_hidden_layers=[[2]]), "made for the backbone"),
    "a kind left out": (lambda: {"backbone": {}}, "made for the backbone"),
    "other weights": (lambda: described(embedding=OTHER_WEIGHTS), "made for other weights"),
    "too few weights": (lambda: described(embedding=backbone()["embedding"][:5]), "made for other weights"),
    "no weights": (lambda: described(embedding=[]), "made for other weights"),
    "weights all zero": (lambda: described(embedding=[0.0] * 32), "made for other weights"),
    "weights whose squares are infinite": (lambda: described(embedding=[1e30] * 32), "made for other weights"),
    "weights beyond float32": (lambda: described(embedding=[1e300] * 32), "backbone['embedding']="),
    "weights beyond floats": (lambda: described(embedding=[10**400] * 32), "backbone['embedding']="),
    "weights NaN": (lambda: described(embedding=[float("nan")] * 32), "backbone['embedding']="),
    "weights nested": (lambda: described(embedding=[[0.1]] * 32), "backbone['embedding']="),
    "weights a text": (lambda: described(embedding="a" * 32), "backbone['embedding']="),
    "weights a number": (lambda: described(embedding=5), "backbone['embedding']="),
    "a backbone with more": (lambda: described(more=1), "backbone="),
    "a backbone that is a list": (lambda: {"backbone": [1]}, "backbone=[1]"),
    "a backbone that is a text": (lambda: {"backbone": "llama"}, "backbone='llama'"),
}

# Names that are not ours: peft leaves them out, with a warning where it does not know them.
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "unknown": {"no_such_option": [1]},
    "modules_to_save": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "exclude_modules": {"exclude_modules": ".*"},
    "target_parameters": {"target_parameters": ["lm_head.weight"]},
    "rank_pattern": {"rank_pattern": {"self_attn": 10**9}},
    "runtime_config": {"runtime_config": 5},
    "a name": {"base_model_name_or_path": "../../etc", "revision": [1], "auto_mapping": "x"},
    "trainable": {"inference_mode": False},
}

# What peft fails on before it knows whose configuration it is; its errors are of many kinds.
PEFT_FAILS: dict[str, str] = {
    "empty": "",
    "cut": "{",
    "a list": "[]",
    "a number": "5",
    "deep": "[" * 100_000,
    "of no method": "{}",
    "of an unknown method": '{"peft_type": "NONE"}',
    "a method that is a list": '{"peft_type": [1]}',
    "self": '{"peft_type": "DELTA_MEM", "self": 1}',
}


def inside(model: nn.Module) -> tuple[Any, ...]:
    """All that loading an adapter could change in a model: its modules, weights and hooks."""
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()},
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
    )


def refuses(folder: Path, error: type[Exception], message: str = "") -> None:
    backbone, model = tiny_backbone(), tiny_adapted()
    for each, load in ((backbone, PeftModel.from_pretrained), (model, lambda _, folder: model.load_adapter(folder, "another"))):
        before = inside(each)
        with pytest.raises(error) as refused:
            load(each, folder)
        assert message in str(refused.value)
        assert inside(each) == before
    assert [*model.peft_config] == model.active_adapters == ["default"]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_configuration_is_refused_and_nothing_is_changed(given_config: Callable[[Any], Path], case: str) -> None:
    change, message = HOSTILE[case]
    refuses(given_config(change()), ValueError, message)


@pytest.mark.parametrize("case", PEFT_FAILS)
def test_what_peft_fails_on_changes_nothing_either(given_config: Callable[[Any], Path], case: str) -> None:
    refuses(given_config(PEFT_FAILS[case]), Exception)


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of what it leaves out
@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_what_is_unknown_has_no_effect(given_config: Callable[[Any], Path], case: str) -> None:
    plain = tiny_adapted()
    loaded = PeftModel.from_pretrained(tiny_backbone(), given_config(WITHOUT_EFFECT[case]))
    assert [name for name, _ in loaded.named_modules()] == [name for name, _ in plain.named_modules()]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.fingerprint() == plain.fingerprint()
    with torch.no_grad():
        assert torch.equal(loaded(random_tokens(1, 5)).logits, plain(random_tokens(1, 5)).logits)


def test_numbers_whose_product_overflows_are_like_nothing() -> None:
    expected, found = ({**backbone(), "embedding": [number] * 32} for number in (3e38, 30.0))
    with pytest.raises(ValueError, match="made for other weights"):
        check_backbone(expected, found)


FIELDS = sorted(tiny_config().to_dict())


@examples(300)
@given(field=st.sampled_from(FIELDS), value=json_values)
def test_any_value_in_any_field_is_taken_or_a_value_error(field: str, value: Any) -> None:
    try:
        config = DeltaMemConfig(**{**tiny_config().to_dict(), field: value})
    except ValueError:
        return
    assert json.dumps(config.to_dict(), default=list)


@examples(200)
@given(
    changes=st.dictionaries(
        st.sampled_from([*backbone(), "more"]), json_values | st.lists(st.floats(), min_size=32, max_size=32)
    )
)
def test_any_description_of_a_backbone_is_compared_or_a_value_error(changes: dict[str, Any]) -> None:
    try:
        config = DeltaMemConfig(**described(**changes))
        assert config.backbone is not None
        check_backbone(config.backbone, backbone())
    except ValueError:
        return
    assert {name: changes.get(name, kind) for name, kind in backbone().items() if name != "embedding"} == {
        name: kind for name, kind in backbone().items() if name != "embedding"
    }
    assert changes.get("embedding") is None  # left out, or not there to be compared; a random one is never like it

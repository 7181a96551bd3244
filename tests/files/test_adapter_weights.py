"""An adapter's weights file is loaded as what it says or refused; if refused, no weight of the model has changed."""

import pickle
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import cut, flipped, inserted
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from tiny import random_tokens, tiny_adapted, tiny_backbone
from torch import Tensor, nn

FILE, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
Weights = dict[str, Tensor]


@cache
def weights() -> Weights:
    """The weights of an adapter, as it saves them; other numbers than those of the models that load them."""
    return get_peft_model_state_dict(tiny_adapted(seed=3))


KEYS = sorted(weights())
BIAS, MATRIX = KEYS[0], KEYS[1]


@pytest.fixture
def folder(tmp_path: Path, saved: Path) -> Path:
    """A folder with the configuration of the adapter, which fits, and no weights yet."""
    shutil.copy(saved / "adapter_config.json", tmp_path)
    return tmp_path


def contents(model: nn.Module, *adapters: str) -> dict[str, bytes]:
    """The weights of the backbone and of some adapters, bit for bit, under the names that they have without a wrapper."""
    return {
        name.replace("base_layer.", ""): tensor.numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if ".delta_mem_" not in name or {*adapters} & {*name.split(".")}
    }


# Each gives a model, the adapters in it that must stay as they are, and how it takes a folder's weights.
Loading = tuple[nn.Module, tuple[str, ...], Callable[[Path], Any]]


def from_pretrained() -> Loading:
    backbone = tiny_backbone()
    return backbone, (), lambda folder: PeftModel.from_pretrained(backbone, folder)


def from_pretrained_empty() -> Loading:
    backbone = tiny_backbone()
    return backbone, (), lambda folder: PeftModel.from_pretrained(backbone, folder, low_cpu_mem_usage=True)


def as_another_adapter() -> Loading:
    model = tiny_adapted()
    return model, ("default",), lambda folder: model.load_adapter(folder, "another")


def over_an_adapter() -> Loading:
    model = tiny_adapted()
    return model, ("default",), lambda folder: model.load_adapter(folder, "default")


def whatever_the_sizes() -> Loading:
    model = tiny_adapted()
    return model, ("default",), lambda folder: model.load_adapter(folder, "default", ignore_mismatched_sizes=True)


def state_dict() -> Loading:
    model = tiny_adapted()
    return model, ("default",), lambda folder: set_peft_model_state_dict(model, load_file(folder / FILE))


LOADINGS = [from_pretrained, from_pretrained_empty, as_another_adapter, over_an_adapter, whatever_the_sizes, state_dict]


def renamed(weights: Weights, key: str, name: str) -> Weights:
    return {name if each == key else each: weight for each, weight in weights.items()}


def replaced(change: Callable[[Tensor], Tensor]) -> Callable[[Weights, str], Weights]:
    return lambda weights, key: {**weights, key: change(weights[key])}


def with_number(number: float) -> Callable[[Weights, str], Weights]:
    def put(weight: Tensor) -> Tensor:
        weight = weight.clone()
        weight.view(-1)[-1] = number
        return weight

    return replaced(put)


# What is done to one weight, and what the refusal must say.
DAMAGE: dict[str, tuple[Callable[[Weights, str], Weights], str]] = {
    "renamed": (lambda weights, key: renamed(weights, key, f"{key}s"), "nothing"),
    "renamed to another layer": (lambda weights, key: renamed(weights, key, re.sub(r"layers\.\d", "layers.7", key)), "nothing"),
    "missing": (lambda weights, key: {each: weights[each] for each in weights if each != key}, "nothing in the file"),
    "one more": (lambda weights, key: {**weights, f"{key}.more": weights[key].clone()}, "nothing in the model"),
    "twice": (lambda weights, key: {**weights, with_adapter(key, "default"): weights[key] + 1}, ""),
    "of another adapter": (lambda weights, key: {**weights, with_adapter(key, "other"): weights[key].clone()}, "nothing"),
    "one row": (replaced(lambda weight: weight[:1].clone()), "(1,"),
    "all sizes 1": (replaced(lambda weight: weight.reshape(-1)[:1].reshape((1,) * weight.ndim).clone()), "(1,"),
    "a scalar": (replaced(lambda weight: weight.sum()), "() in the file"),
    "a size more": (replaced(lambda weight: weight[None].clone()), "(1, "),
    "empty": (replaced(lambda weight: weight[:0].clone()), "(0"),
    "whole numbers": (replaced(lambda weight: weight.int()), "torch.int32"),
    "truth values": (replaced(lambda weight: weight.bool()), "torch.bool"),
    "complex": (replaced(lambda weight: weight.to(torch.complex64)), "torch.complex64"),
    "double precision": (replaced(lambda weight: weight.double()), "torch.float64"),
    "eight bits": (replaced(lambda weight: weight.to(torch.float8_e4m3fn)), "torch.float8_e4m3fn"),
    "NaN": (with_number(float("nan")), "NaN or infinite"),
    "infinity": (with_number(float("-inf")), "NaN or infinite"),
}


def with_adapter(key: str, adapter: str) -> str:
    """The name that a weight has in a model."""
    return f"{key.removesuffix('.weight')}.{adapter}{'.weight' if key.endswith('.weight') else ''}"


def refuses(loading: Callable[[], Loading], folder: Path, damaged: Weights, message: str) -> None:
    save_file(damaged, folder / FILE)
    model, adapters, take = loading()
    before = contents(model, *adapters)
    with pytest.raises(ValueError, match=re.escape(message) or None) as refused:
        take(folder)
    assert "adapter" in str(refused.value)
    assert contents(model, *adapters) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_one_weight_that_is_not_the_adapters_is_refused(folder: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    for key in KEYS:
        refuses(state_dict, folder, change(weights(), key), message)


@pytest.mark.parametrize("loading", LOADINGS, ids=lambda loading: loading.__name__)
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_way_of_loading_refuses(folder: Path, damage: str, loading: Callable[[], Loading]) -> None:
    change, message = DAMAGE[damage]
    refuses(loading, folder, change(weights(), MATRIX), message)


OF_THE_BACKBONE = [
    "lm_head.weight",
    "base_model.model.lm_head.weight",
    "base_model.model.model.embed_tokens.weight",
    "base_model.model.model.norm.weight",
    "base_model.model.model.layers.0.mlp.up_proj.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.weight",
    "base_model.model.model.layers.0.self_attn.base_layer.q_proj.weight",
    "model.layers.0.self_attn.base_layer.q_proj.weight",
]


@pytest.mark.parametrize("loading", LOADINGS, ids=lambda loading: loading.__name__)
@pytest.mark.parametrize("name", OF_THE_BACKBONE)
def test_a_weight_of_the_backbone_is_refused(folder: Path, name: str, loading: Callable[[], Loading]) -> None:
    refuses(loading, folder, {**weights(), name: torch.zeros(61, 32)}, "nothing")


FOREIGN: dict[str, Weights] = {
    "nothing": {},
    "a LoRA": {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight": torch.zeros(8, 8) for part in "AB"},
    "a backbone": {"model.embed_tokens.weight": torch.zeros(61, 32), "lm_head.weight": torch.zeros(61, 32)},
    "a memory": {"model.layers.0.self_attn": torch.zeros(1, 1, 4, 4), "@tokens": torch.zeros(1, dtype=torch.int64)},
}


@pytest.mark.parametrize("loading", LOADINGS, ids=lambda loading: loading.__name__)
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(folder: Path, kind: str, loading: Callable[[], Loading]) -> None:
    refuses(loading, folder, FOREIGN[kind], "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loading", LOADINGS, ids=lambda loading: loading.__name__)
def test_what_fits_is_loaded_as_the_file_says(folder: Path, dtype: torch.dtype, loading: Callable[[], Loading]) -> None:
    given = {name: weight.to(dtype) for name, weight in reversed(weights().items())}
    save_file(given, folder / FILE, {"anything": "may stand here"})
    model, _, take = loading()
    before = contents(model)
    take(folder)
    adapter = "another" if loading is as_another_adapter else "default"
    # A backbone that peft has wrapped keeps the names without the wrapper's prefix.
    loaded = {name.removeprefix("base_model.model."): weight for name, weight in model.state_dict().items()}
    for name, weight in given.items():
        own = loaded[with_adapter(name, adapter).removeprefix("base_model.model.")]
        assert own.dtype == torch.float32
        assert torch.equal(own, weight.float())
    assert contents(model) == before


@pytest.mark.parametrize("name", ["model", "layers", "0", "self_attn", "weight", "delta_mem_in"])
def test_an_adapter_may_have_the_name_of_a_module(folder: Path, name: str) -> None:
    save_file(weights(), folder / FILE)
    model, _, _ = as_another_adapter()
    model.load_adapter(folder, name)
    assert torch.equal(model.state_dict()[with_adapter(MATRIX, name)], weights()[MATRIX])


def test_after_a_refusal_another_load_goes_well(folder: Path) -> None:
    model, _, take = as_another_adapter()
    before, logits = contents(model, "default"), model(random_tokens(1, 4)).logits
    save_file(DAMAGE["missing"][0](weights(), MATRIX), folder / FILE)
    with pytest.raises(ValueError, match=re.escape("model.delete_adapter('another')")):
        take(folder)
    assert torch.equal(model(random_tokens(1, 4)).logits, logits)
    model.delete_adapter("another")
    assert [*model.peft_config] == ["default"]
    save_file(weights(), folder / FILE)
    take(folder)
    assert contents(model, "default") == before
    assert torch.equal(model(random_tokens(1, 4)).logits, logits)


def test_a_backbone_that_kept_the_layers_of_a_refused_load_says_so(folder: Path) -> None:
    _, _, take = from_pretrained()
    save_file({}, folder / FILE)
    with pytest.raises(ValueError, match="not those of the adapter"):
        take(folder)
    save_file(weights(), folder / FILE)
    with pytest.raises(ValueError, match="δ-mem layers already"):
        take(folder)


# Damaged bytes. safetensors refuses what it cannot read, in peft's hands; the rest is ours to refuse.

SAVED = save(weights())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PeftModel:
    model = tiny_adapted()
    model.add_adapter("damaged", model.peft_config["default"])
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapter") / FILE


@examples(300)
@given(content=flipped(SAVED) | cut(SAVED) | inserted(SAVED))
def test_damaged_bytes_are_refused_or_loaded_as_they_are(model: PeftModel, file: Path, content: bytes) -> None:
    untouched, whole = contents(model, "default"), contents(model, "damaged")
    file.write_bytes(content)
    try:
        model.load_adapter(file.parent, "damaged")
    except (ValueError, SafetensorError):
        assert contents(model, "damaged") == whole
    else:
        for name, weight in load(content).items():
            assert torch.equal(model.state_dict()[with_adapter(name, "damaged")], weight.float())
            assert weight.isfinite().all()
        assert load(content).keys() == weights().keys()
    assert contents(model, "default") == untouched


@examples(20)
@given(content=st.binary(max_size=64))
def test_any_bytes_are_refused(model: PeftModel, file: Path, content: bytes) -> None:
    untouched = contents(model, "default", "damaged")
    file.write_bytes(content)
    with pytest.raises((ValueError, SafetensorError)):
        model.load_adapter(file.parent, "damaged")
    assert contents(model, "default", "damaged") == untouched


# Pickles. peft reads an adapter_model.bin where there is no safetensors file, with torch.load(weights_only=True).


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


PICKLES: dict[str, Callable[[Any, Path], None]] = {
    "of torch": torch.save,
    "of torch, the old format": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "of Python": lambda value, path: path.write_bytes(pickle.dumps(value)),
}


@pytest.mark.parametrize(
    "loading", [from_pretrained, as_another_adapter, over_an_adapter], ids=lambda loading: loading.__name__
)
@pytest.mark.parametrize("name", [PICKLE, FILE])
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_not_executed(folder: Path, kind: str, name: str, loading: Callable[[], Loading]) -> None:
    marker = folder / "executed"
    PICKLES[kind]({**weights(), "trap": Trap(marker)}, folder / name)
    model, adapters, take = loading()
    before = contents(model, *adapters)
    with pytest.raises((pickle.UnpicklingError, SafetensorError)):
        take(folder)
    assert not marker.exists()
    assert contents(model, *adapters) == before


def test_the_trap_would_have_worked(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


UNSAFE_TENSORS: dict[str, Any] = {
    "no tensor": [0.0],
    "sparse": torch.zeros(16, 32).to_sparse(),
    "NaN": torch.full((16, 32), torch.nan),
    "quantised": torch.quantize_per_tensor(torch.zeros(16, 32), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("kind", UNSAFE_TENSORS)
def test_the_weights_in_a_pickle_are_checked_like_all_others(folder: Path, kind: str) -> None:
    torch.save({**weights(), MATRIX: UNSAFE_TENSORS[kind]}, folder / PICKLE)
    model, adapters, take = as_another_adapter()
    before = contents(model, *adapters)
    with pytest.raises(ValueError, match=re.escape(f"adapter's weight {with_adapter(MATRIX, 'another')}")):
        take(folder)
    assert contents(model, *adapters) == before


def test_a_safetensors_file_is_preferred_to_a_pickle(folder: Path) -> None:
    torch.save({"trap": Trap(folder / "executed")}, folder / PICKLE)
    save_file(weights(), folder / FILE)
    as_another_adapter()[2](folder)
    assert not (folder / "executed").exists()

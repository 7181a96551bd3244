import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_backbone

OPTIONS = {
    "tsw": {},
    "msw, learned": {"num_states": 2, "decay": "learned", "corrections": ("q", "k", "v", "o")},
    "ssw, one gate": {"write": "message", "rowwise_gates": False, "decay": "none"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_figures_are_those_of_the_attached_adapter(options, saved, inspect):
    model, folder = saved(**options)
    figures = inspect.figures(folder)
    layers = model.base_model._layers
    assert figures["kind"] == "adapter"
    assert figures["fingerprint"] == model.base_model.fingerprint()
    assert figures["parameters"] == model.get_nb_trainable_parameters()[0]
    assert figures["memory_bytes"] == model.new_memory().nbytes
    assert [row["name"] for row in figures["layers"]] == [*layers]
    rows = 4 * options.get("num_states", 1)
    for row, layer in zip(figures["layers"], layers.values(), strict=True):
        weights = layer.adapter_weights("default")
        assert row["parameters"] == sum(weight.numel() for weight in weights.values())
        parts = weights["in"].tensor_split([rows, 2 * rows, 3 * rows])
        assert [*row["projections"].values()] == pytest.approx([part.norm().item() for part in parts])
        scaled = {role: 4 * weights[role].norm().item() for role in options.get("corrections", ("q", "o"))}  # alpha / r
        assert row["corrections"] == pytest.approx(scaled)


@pytest.mark.parametrize(("decay", "kept"), [("coupled", 0.8), ("learned", 0.9), ("none", 1.0)])
def test_the_gates_at_rest(decay, kept, saved, inspect, tmp_path):
    folder = shutil.copytree(saved(decay=decay)[1], tmp_path / decay)
    bias = torch.tensor([0.1, 0.2, 0.2, 0.3] + [0.9] * 4 * (decay == "learned")).logit()
    change_weights(folder, lambda name, weight: bias if "gate_bias" in name else weight)
    row = inspect.figures(str(folder))["layers"][0]
    assert row["write_gate"] == pytest.approx({"mean": 0.2, "least": 0.1, "most": 0.3})
    assert row["keep_gate"]["mean"] == pytest.approx(kept)


def change_weights(folder, change):
    path = Path(folder) / "adapter_model.safetensors"
    save_file({name: change(name, weight).clone().contiguous() for name, weight in load_file(path).items()}, path)


def test_as_a_table(saved, inspect):
    text = " ".join(inspect(saved()[1]).split())
    for expected in ("An adapter of δ-mem", "1,544 trained parameters", "One memory takes 128 bytes", "|gates|", "|Δq|"):
        assert expected in text


def test_layers_are_in_the_order_of_the_model(saved, inspect, tmp_path):
    """Layer 10 comes behind layer 2, whatever the order of the file."""
    folder = shutil.copytree(saved()[1], tmp_path / "many")
    path = folder / "adapter_model.safetensors"
    first = {name: weight for name, weight in load_file(path).items() if ".0." in name}
    many = {name.replace(".0.", f".{layer}."): weight.clone() for name, weight in first.items() for layer in (10, 2, 0)}
    save_file(many, path)
    names = [row["name"] for row in inspect.figures(str(folder))["layers"]]
    assert names == [f"model.layers.{layer}.self_attn" for layer in (0, 2, 10)]


def test_the_fingerprint_needs_to_know_the_backbone(saved, inspect, tmp_path):
    folder = shutil.copytree(saved()[1], tmp_path / "unknown")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "backbone": None}))
    assert inspect.figures(str(folder))["fingerprint"] is None
    assert "not known without its backbone" in inspect(str(folder))


def test_another_kind_of_adapter_is_refused(refusal, tmp_path):
    get_peft_model(tiny_backbone(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "holds an adapter of the method 'LORA', which has no memory" in refusal(str(tmp_path))


DAMAGED = {
    "another shape": (lambda name, weight: weight[:5] if "_in." in name else weight, "are not those of the adapter's config"),
    "not a number": (lambda name, weight: weight * float("nan"), "NaN"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_weights_are_refused(change, message, saved, refusal, tmp_path):
    folder = shutil.copytree(saved()[1], tmp_path / "damaged")
    change_weights(folder, change)
    assert message in refusal(str(folder))


def test_a_file_that_is_no_safetensors_is_refused(saved, refusal, tmp_path):
    folder = shutil.copytree(saved()[1], tmp_path / "broken")
    (folder / "adapter_model.safetensors").write_bytes(b"nothing of the kind")
    assert "is not a readable safetensors file" in refusal(str(folder))


def test_no_weights_are_refused(saved, refusal, tmp_path):
    folder = shutil.copytree(saved()[1], tmp_path / "empty")
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in refusal(str(folder))

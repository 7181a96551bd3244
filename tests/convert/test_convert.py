import json
import subprocess
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny import tiny_adapted, tiny_config
from torch.torch_version import TorchVersion
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from deltamem.convert import from_reference, to_reference
from deltamem_cli import app

FOLDER = Path(__file__).parents[1] / "reference_vectors"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


def vectors(name):
    """The backbone's config, and the options and weights of a recorded reference adapter."""
    case, tensors = json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")
    weights = {name.removeprefix("adapter."): t for name, t in tensors.items() if name.startswith("adapter.")}
    return case["base_model"]["config"], case["delta_mem_config"], weights


@pytest.fixture
def adapter():
    return vectors("qwen3_tsw_qo")[1:]


@pytest.fixture
def published(adapter, tmp_path):
    """A folder in the format that the authors publish: a pickle, in bfloat16."""
    config, tensors = adapter
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "delta_mem_config.json").write_text(json.dumps(config))
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "delta_mem_adapter.pt")
    return folder


def convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def refusal(*arguments):
    result = convert(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    return result.stderr


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_memory_partitions", 4),
        ("delta_o_rmsnorm", True),
        ("normalize_qk", False),
        ("state_update_mode", "lambda_inside"),
        ("memory_write_granularity", "paragraph"),
        ("memory_write_granularity", ["token"]),
        ("couple_lambda", "no"),
        ("delta_heads", "qo"),
        ("target_layers", 3),
        ("memory_backend", "rwkv"),  # of a fork, whose weights mean something else
    ],
)
def test_an_option_without_counterpart_is_refused_by_name(adapter, option, value):
    config, tensors = adapter
    with pytest.raises(ValueError, match=option):
        from_reference({**config, option: value}, tensors)


@pytest.mark.parametrize("option", ["rank", "alpha", "delta_heads"])
def test_a_missing_option_is_named(adapter, option):
    config, tensors = adapter
    del config[option]
    with pytest.raises(ValueError, match=option):
        from_reference(config, tensors)


def test_what_only_concerns_new_weights_is_not_looked_at(adapter):
    config, tensors = adapter
    from_reference({**config, "output_init": "random", "online_gain": 4.0}, tensors)


def test_a_missing_weight_is_named(adapter):
    config, tensors = adapter
    del tensors["model.layers.1.self_attn.beta_bias"]
    with pytest.raises(ValueError, match=r"lacks 'model\.layers\.1\.self_attn\.beta_bias'"):
        from_reference(config, tensors)


def test_an_unknown_weight_is_named(adapter):
    config, tensors = adapter
    tensors["model.layers.1.self_attn.extra"] = tensors["model.layers.1.self_attn.beta_bias"]
    with pytest.raises(ValueError, match=r"has 'model\.layers\.1\.self_attn\.extra'"):
        from_reference(config, tensors)


@pytest.mark.parametrize(
    ("name", "shape"), [("memory_q_proj", (5, 32)), ("memory_v_proj", (4, 31)), ("beta_bias", (1,)), ("delta_o_proj", (32, 8))]
)
def test_a_misshapen_weight_is_named(adapter, name, shape):
    config, tensors = adapter
    tensors[f"model.layers.0.self_attn.{name}"] = torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"layers\.0\.self_attn\.{name}"):
        from_reference(config, tensors)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_the_same_adapter(name):
    """What is lost is what is switched off, and the options that make new weights."""
    _, config, tensors = vectors(name)
    options, back = to_reference(*from_reference(config, tensors))
    assert options == {option: config[option] for option in options}
    assert same(back, {name: tensors[name] for name in back})
    assert same(from_reference(options, back)[1], from_reference(config, tensors)[1])
    off = {f"delta_{role}_proj" for role in "qkvo" if role not in config["delta_heads"]}
    assert {name.rpartition(".")[2] for name in tensors.keys() - back.keys()} == off


@pytest.mark.parametrize(
    ("options", "model_type", "named"),
    [
        ({}, "gpt_neox", r"gpt_neox\.layers\.0\.attention"),  # the reference finds attention by the name self_attn
        ({"target_modules": ["layers.0.self_attn"]}, "qwen3", "target_modules"),
    ],
)
def test_what_the_reference_lacks_is_refused_by_name(options, model_type, named):
    model = tiny_adapted(tiny_config(**options), model_type=model_type)
    config = model.active_peft_config
    if not options:
        config.target_modules = None
    with pytest.raises(ValueError, match=named):
        to_reference(config, get_peft_model_state_dict(model))


def test_weights_that_the_config_does_not_call_for_are_not_exported():
    model = tiny_adapted(model_type="qwen3")
    weights = get_peft_model_state_dict(model)
    with pytest.raises(ValueError, match=r"in\.weight has the shape"):
        to_reference(tiny_config(r=2), weights)
    with pytest.raises(ValueError, match=r"has 'base_model.*delta_mem_o"):
        to_reference(tiny_config(corrections=("q",)), weights)


def test_the_published_adapter_fits_its_backbone():
    """The one for Qwen3-4B-Instruct-2507: its names, shapes and dtype, on the meta device, into a model of that shape."""
    shapes = {f"memory_{role}_proj": (8, 2560) for role in "qkv"} | {"beta_proj": (8, 2560), "beta_bias": (8,)}
    shapes |= {f"delta_{role}_proj": (width, 8) for role, width in {"q": 4096, "k": 1024, "v": 1024, "o": 2560}.items()}
    tensors = {
        f"model.layers.{layer}.self_attn.{name}": torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for layer in range(36)
        for name, shape in shapes.items()
    }
    assert len(tensors) == 324
    config, weights = from_reference({"rank": 8, "alpha": 16.0, "delta_heads": ["q", "o"]}, tensors)
    qwen = AutoConfig.for_model(
        "qwen3", hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128
    )
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(qwen), config)
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in get_peft_model_state_dict(model).items()
    }
    assert sum(weight.numel() for weight in weights.values()) == 4_866_336


def test_a_converted_folder_loads_with_peft_and_goes_back(adapter, published, tmp_path):
    backbone_config, *_ = vectors("qwen3_tsw_qo")
    result = convert(published, tmp_path / "ours", "--base-model", "someone/qwen3")
    assert result.exit_code == 0, result.output
    assert "8 tensors, 1,544 parameters" in result.output
    assert PeftConfig.from_pretrained(tmp_path / "ours").base_model_name_or_path == "someone/qwen3"
    assert "base_model: someone/qwen3" in (tmp_path / "ours" / "README.md").read_text()
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(**backbone_config))
    loaded = PeftModel.from_pretrained(backbone, tmp_path / "ours")
    options, tensors = adapter
    _, expected = from_reference(options, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    given = get_peft_model_state_dict(loaded)
    assert same({name: tensor.bfloat16() for name, tensor in given.items()}, expected)

    assert convert(tmp_path / "ours", tmp_path / "theirs", "--to", "reference").exit_code == 0
    back = load_file(tmp_path / "theirs" / "delta_mem_adapter.safetensors")
    assert same(back, {name: tensors[name].bfloat16() for name in back})
    # What was written is read again, without a pickle this time.
    assert convert(tmp_path / "theirs", tmp_path / "again", "--base-model", "someone/qwen3").exit_code == 0
    ours, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "again"))
    assert same(ours, again)


def test_a_pickle_that_would_run_code_does_not(published, tmp_path):
    class Touch:
        def __reduce__(self):
            return subprocess.check_call, (["touch", str(tmp_path / "ran")],)

    torch.save({"model.layers.0.self_attn.beta_bias": Touch()}, published / "delta_mem_adapter.pt")
    assert "not a file of weights alone" in refusal(published, tmp_path / "ours", "--base-model", "someone/qwen3")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "ours").exists()


def test_a_torch_with_an_unsafe_unpickler_reads_safetensors_only(adapter, published, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1+cpu"))
    assert "GHSA-63cw-57p8-fm3p" in refusal(published, tmp_path / "ours", "--base-model", "someone/qwen3")
    save_file(adapter[1], published / "delta_mem_adapter.safetensors")
    assert convert(published, tmp_path / "ours", "--base-model", "someone/qwen3").exit_code == 0


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "delta_mem_adapter.pt"),
        ([1, 2], "holds list"),
        ({"model.layers.0.self_attn.beta_bias": torch.full((4,), torch.nan)}, "beta_bias has NaN"),
        ({"model.layers.0.self_attn.beta_bias": torch.zeros(4, dtype=torch.int64)}, "beta_bias is torch.int64"),
        ({"step": 5}, "step is int"),
    ],
)
def test_a_file_without_usable_weights_is_refused(published, tmp_path, content, named):
    path = published / "delta_mem_adapter.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert named in refusal(published, tmp_path / "ours", "--base-model", "someone/qwen3")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("config", ["[]", "{", '{"rank": "8", "alpha": 16, "delta_heads": ["q"]}'])
def test_a_file_without_usable_options_is_refused(published, tmp_path, config):
    (published / "delta_mem_config.json").write_text(config)
    refusal(published, tmp_path / "ours", "--base-model", "someone/qwen3")
    assert not (tmp_path / "ours").exists()


def test_wrong_folders_and_options_are_named(published, tmp_path):
    base = ("--base-model", "someone/qwen3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert "not empty" in refusal(published, tmp_path / "full", *base)
    assert "--base-model" in refusal(published, tmp_path / "ours")
    assert "--base-model" in refusal(published, tmp_path / "ours", "--to", "reference", *base)
    assert "hf download" in refusal(tmp_path / "nowhere", tmp_path / "ours", *base)
    assert "--to reference" in refusal(tmp_path / "full", tmp_path / "ours", *base)
    assert "holds no PEFT adapter" in refusal(published, tmp_path / "ours", "--to", "reference")
    (tmp_path / "full" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "LORA" in refusal(tmp_path / "full", tmp_path / "ours", "--to", "reference")

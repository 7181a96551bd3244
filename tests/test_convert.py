import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from deltamem.convert import from_reference

FOLDER = Path(__file__).parent / "reference_vectors"


@pytest.fixture
def adapter():
    config = json.loads((FOLDER / "qwen3_tsw_qo.json").read_text())["delta_mem_config"]
    tensors = load_file(FOLDER / "qwen3_tsw_qo.safetensors")
    prefix = "adapter."
    return config, {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_memory_partitions", 4),
        ("delta_o_rmsnorm", True),
        ("normalize_qk", False),
        ("state_update_mode", "lambda_inside"),
        ("memory_write_granularity", "paragraph"),
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

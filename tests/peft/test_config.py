import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig

from deltamem import DeltaMemConfig

BAD = [
    ("r", 0),
    ("r", -3),
    ("r", "8"),
    ("r", 2.0),
    ("r", True),
    ("num_states", 0),
    ("alpha", float("nan")),
    ("alpha", "16"),
    ("beta_bias", float("inf")),
    ("corrections", ()),
    ("corrections", ("q", "q")),
    ("corrections", ("x",)),
    ("corrections", "qo"),
    ("write", "paragraph"),
    ("decay", "slow"),
    ("decay_first", 1),
    ("rowwise_gates", None),
    ("init", "ones"),
    ("turn_writes", "never"),
    ("layers_to_transform", []),
    ("layers_to_transform", [0, 0]),
    ("layers_to_transform", [-1]),
    ("layers_to_transform", "all"),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_wrong_value_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field) as refused:
        DeltaMemConfig(**{field: value})
    assert repr(value) in str(refused.value)


def test_decay_first_needs_a_decay():
    with pytest.raises(ValueError, match="decay_first"):
        DeltaMemConfig(decay="none", decay_first=True)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="rank"):
        DeltaMemConfig(rank=8)


@pytest.mark.parametrize(
    ("config", "write", "num_states"),
    [
        (DeltaMemConfig.tsw(), "token", 1),
        (DeltaMemConfig.ssw(), "message", 1),
        (DeltaMemConfig.ssw(write="sentence"), "sentence", 1),
        (DeltaMemConfig.msw(), "token", 4),
    ],
)
def test_the_papers_variants(config, write, num_states):
    assert (config.write, config.num_states) == (write, num_states)


@given(
    r=st.integers(1, 64),
    corrections=st.lists(st.sampled_from("qkvo"), min_size=1, unique=True),
    write=st.sampled_from(["token", "message", "sentence"]),
    decay=st.sampled_from(["coupled", "learned", "none"]),
    layers=st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, unique=True),
)
def test_a_saved_config_is_the_same_when_loaded(tmp_path_factory, r, corrections, write, decay, layers):
    config = DeltaMemConfig(r=r, corrections=corrections, write=write, decay=decay, layers_to_transform=layers)
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    loaded = PeftConfig.from_pretrained(str(folder))
    assert isinstance(loaded, DeltaMemConfig)
    assert dataclasses.asdict(loaded) == dataclasses.asdict(config)
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "DELTA_MEM"

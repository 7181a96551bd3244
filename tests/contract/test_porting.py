"""docs/porting.md, tried: the port that it shows passes the contract, and it says what happens without."""

import inspect
import re
from pathlib import Path

import heron  # registers the made-up architecture with transformers
import pytest
import test_contract as contract
from checks import CHECKS
from family import Family, adapted, bare, tokens

from deltamem.hook import registered as known_hooks

DOCS = Path(__file__).parents[2] / "docs" / "porting.md"
MOST_LINES = 15


def parts_by_hand(output, config):
    """[b, t, heads of keys, v | k | q q]."""
    keys = config.num_key_value_heads
    parts = output.view(*output.shape[:2], keys, -1, config.hidden_size // config.num_attention_heads)
    return {"v": parts[..., 0, :], "k": parts[..., 1, :], "q": parts[..., 2:, :]}


FAMILY = Family(unpack=dict.fromkeys("qkv", parts_by_hand))


def the_port():
    """The block of code in the docs that registers a hook for the made-up architecture."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (port,) = (block for block in blocks if "register_hook(" in block)
    return port


@pytest.fixture
def ported(monkeypatch):
    monkeypatch.setattr(known_hooks, "_registered", {})
    exec(compile(the_port(), str(DOCS), "exec"), {})


def test_a_port_takes_few_lines():
    assert len(the_port().splitlines()) <= MOST_LINES


def test_without_it_the_error_is_the_one_in_the_docs():
    with pytest.raises(ValueError, match="heron") as refused:
        adapted(heron.HeronForCausalLM(heron.HeronConfig()))
    shown = " ".join(re.search(r"ValueError: (.*?), \.\.\.", DOCS.read_text(), re.DOTALL)[1].split())
    assert str(refused.value).startswith(shown)


def test_the_docs_show_the_code_of_the_made_up_attention():
    for line in re.search(r"```py\n(def forward.*?)```", DOCS.read_text(), re.DOTALL)[1].splitlines():
        assert line == "    ..." or line.strip() in inspect.getsource(heron.Gaze.forward)


@pytest.mark.usefixtures("ported")
def test_each_correction_enters_where_the_method_says():
    contract.test_a_correction_enters_where_the_method_says("heron", FAMILY)


@pytest.mark.usefixtures("ported")
@pytest.mark.parametrize("check", CHECKS)
def test_it_runs_as_transformers_runs_it(check):
    contract.test_it_runs_as_transformers_runs_it("heron", FAMILY, check)


@pytest.mark.usefixtures("ported")
def test_the_rest_of_the_contract(tmp_path):
    contract.test_every_attention_layer_has_a_memory_and_nothing_else("heron", FAMILY)
    contract.test_disabled_or_empty_it_is_the_bare_model_bit_for_bit("heron", FAMILY)
    contract.test_the_output_correction_changes_the_output_alone("heron", FAMILY)
    contract.test_every_weight_of_the_adapter_is_trained_and_no_other("heron", FAMILY)
    contract.test_save_and_load("heron", FAMILY, tmp_path)


@pytest.mark.usefixtures("ported")
def test_another_order_of_the_parts_fails_the_contract():
    """A control: all widths are the same, so nothing else would notice."""
    wrong = the_port().replace("(v k q)", "(q k v)")
    exec(compile(wrong, str(DOCS), "exec"), {})
    with pytest.raises(AssertionError):
        contract.test_a_correction_enters_where_the_method_says("heron", FAMILY)


def test_without_keywords_false_nothing_runs_without_its_memory(monkeypatch):
    monkeypatch.setattr(known_hooks, "_registered", {})
    exec(compile(the_port().replace("keywords=False", "keywords=True"), str(DOCS), "exec"), {})
    model = adapted(bare("heron", FAMILY))
    with pytest.raises(RuntimeError, match=r"did not reach 2 of 2 .*flock\.0\.gaze.*keywords=False"):
        model(input_ids=tokens(1, 4))

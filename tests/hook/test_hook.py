import subprocess
import sys
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest
from peft import get_peft_model
from tiny import MODEL_TYPES, random_tokens, tiny_backbone, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

from deltamem import AttentionHook, register_hook
from deltamem.hook import Unsupported
from deltamem.hook import registered as known_hooks
from deltamem.hook.registered import hook_for, registered_hook, registered_types

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture
def registry(monkeypatch):
    """Registrations that end with the test."""
    monkeypatch.setattr(known_hooks, "_registered", {})


@pytest.fixture
def packages(monkeypatch):
    """Makes some entry points the only ones: `packages(name=hooks)`."""

    class Point:
        dist = None

        def __init__(self, name, hooks):
            self.name, self.value, self.hooks = name, f"{name}:HOOKS", hooks

        def load(self):
            if isinstance(self.hooks, Exception):
                raise self.hooks
            return self.hooks

    def install(**points):
        monkeypatch.setattr(known_hooks, "entry_points", lambda group: [Point(*point) for point in points.items()])
        known_hooks._packaged.cache_clear()

    yield install
    known_hooks._packaged.cache_clear()


def test_the_families_come_from_the_entry_points():
    assert {*MODEL_TYPES} <= {*registered_types()}


def test_what_the_user_registers_wins(registry):
    mine = AttentionHook(o="dense")
    register_hook("llama", mine)
    assert registered_hook("llama") is mine
    assert hook_for(tiny_backbone("llama")) is mine


@pytest.mark.parametrize(("model_type", "hook"), [("", AttentionHook()), (3, AttentionHook()), ("new", "q_proj")])
def test_a_wrong_registration_is_refused(registry, model_type, hook):
    with pytest.raises(ValueError, match="not accepted"):
        register_hook(model_type, hook)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"q": ""}, r"AttentionHook\.q=''"),
        ({"o": None}, r"AttentionHook\.o=None"),
        ({"attention": ("self_attn", 3)}, r"AttentionHook\.attention="),
        ({"packing": {"qkv_proj": "q k v"}}, "qkv_proj"),
        ({"q": "qkv", "k": "qkv", "v": "qkv"}, "entry for every module.*qkv"),
        ({"q": "qkv", "k": "qkv", "v": "qkv", "packing": {"qkv": "q|k|v"}}, r"'q\|k\|v'"),
    ],
)
def test_a_hook_that_cannot_be_right_is_refused_when_it_is_made(options, named):
    with pytest.raises(ValueError, match=named):
        AttentionHook(**options)


def test_a_hook_that_finds_nothing_shows_what_there_is(registry):
    register_hook("llama", AttentionHook(o="dense"))
    backbone = tiny_backbone("llama")
    keys = [*backbone.state_dict()]
    with pytest.raises(ValueError, match=r"'dense'.*self_attn \(LlamaAttention\) with q_proj \(32 → 32\), k_proj \(32 → 16\)"):
        get_peft_model(backbone, tiny_config())
    assert [*backbone.state_dict()] == keys


def test_a_module_that_is_no_linear_map_is_refused(registry):
    register_hook("qwen3", AttentionHook(k="k_norm"))
    with pytest.raises(ValueError, match=r"k projection 'k_norm' of Qwen3Attention is a Qwen3RMSNorm"):
        get_peft_model(tiny_backbone("qwen3"), tiny_config())


def test_heads_of_keys_under_another_name_are_not_taken_for_as_many_as_the_queries():
    """The output can be divided all the same, into 24 heads of 2 where there are 12 of 4."""
    attention = tiny_backbone("phi3", num_attention_heads=8, num_key_value_heads=2, head_dim=4).model.layers[0].self_attn
    del attention.num_key_value_heads
    hook, config = registered_hook("phi3"), SimpleNamespace(num_attention_heads=8, multi_query_group_num=2)
    with pytest.raises(
        ValueError, match=r"queries of Phi3Attention 16 wide, but its output projection takes 32.*attribute_map"
    ):
        hook.projections(attention, config)
    config.num_key_value_heads = config.multi_query_group_num
    widths = {role: part.out_features for role, part in hook.projections(attention, config).items()}
    assert widths == {"q": 32, "k": 8, "v": 8, "o": 32}


def test_the_first_of_several_names_that_is_there_counts(registry):
    register_hook("llama", AttentionHook(attention=("attn", "self_attn"), q=("wq", "q_proj"), o=("dense", "o_proj")))
    register_hook("phi", AttentionHook(o=("dense", "o_proj")))
    for model_type in ("llama", "phi"):
        backbone = tiny_backbone(model_type)
        assert len(hook_for(backbone).attention_modules(backbone)) == 2


def test_names_may_have_a_star_for_the_number_of_a_layer(registry):
    register_hook("llama", AttentionHook("layers.*.self_attn"))
    model = get_peft_model(tiny_backbone("llama"), tiny_config())
    assert [*model.new_memory().tensors] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert model.peft_config["default"].target_modules == {"layers.0.self_attn", "layers.1.self_attn"}


def test_what_a_configuration_must_say(registry):
    register_hook("llama", AttentionHook(requires={"attention_bias": True}))
    with pytest.raises(ValueError, match=r"attention_bias=True only, and this one's.*attention_bias=False"):
        get_peft_model(tiny_backbone("llama"), tiny_config())
    get_peft_model(tiny_backbone("llama", attention_bias=True), tiny_config())


def test_an_unsupported_type_is_refused_with_its_reason(registry, packages):
    packages(first={"llama": Unsupported("it is only a test")})
    with pytest.raises(ValueError, match="the model type 'llama' is not supported: it is only a test"):
        get_peft_model(tiny_backbone("llama"), tiny_config())
    register_hook("llama", AttentionHook())
    get_peft_model(tiny_backbone("llama"), tiny_config())


def test_a_model_whose_encoder_reads_another_text_is_refused():
    config = AutoConfig.for_model("t5", d_model=32, d_ff=48, d_kv=8, num_layers=1, num_heads=4, vocab_size=61)
    from transformers import T5ForConditionalGeneration

    with pytest.raises(ValueError, match="'t5' is not supported: it is an encoder-decoder"):
        hook_for(T5ForConditionalGeneration(config))


def test_two_packages_for_one_model_type_are_an_error_for_that_type_alone(registry, packages):
    packages(first={"new": AttentionHook(), "one": AttentionHook()}, second={"new": AttentionHook()})
    with pytest.raises(ValueError, match=r"two packages.*'new': first \(first:HOOKS\) and second \(second:HOOKS\)"):
        registered_hook("new")
    assert registered_hook("one") == AttentionHook()
    mine = AttentionHook(o="dense")
    register_hook("new", mine)
    assert registered_hook("new") is mine


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"new": "q_proj"}, r"third \(third:HOOKS\) registers 'q_proj' for the model type 'new'"),
        (7, r"third \(third:HOOKS\) cannot be loaded"),
        (ImportError("no such module"), r"third \(third:HOOKS\) cannot be loaded.*no such module"),
    ],
)
def test_a_package_that_registers_something_else_is_named(registry, packages, hooks, message):
    packages(third=hooks)
    with pytest.raises(ValueError, match=message):
        registered_hook("new")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with two plug-in packages installed that register the same model type, one of them another one too."""
    folder = tmp_path_factory.mktemp("site")
    source = copytree(PLUGIN, folder / "first")
    second = copytree(PLUGIN, folder / "second")
    settings = (second / "pyproject.toml").read_text().replace("deltamem-mynah", "deltamem-other").replace("_mynah", "_other")
    (second / "pyproject.toml").write_text(settings)
    (second / "deltamem_mynah.py").rename(second / "deltamem_other.py")
    code = (second / "deltamem_other.py").read_text().replace('{"mynah":', '{"toucan": AttentionHook(), "mynah":')
    (second / "deltamem_other.py").write_text(code)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "installed", source, second], check=True)
    return folder / "installed"


def test_an_installed_package_registers_its_hooks(registry, site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    llama = registered_hook("llama")
    monkeypatch.setattr(known_hooks, "_packaged", known_hooks._packaged.__wrapped__)  # nothing is kept after the test
    assert registered_hook("toucan") == AttentionHook()
    with pytest.raises(ValueError, match="two packages") as refused:
        registered_hook("mynah")
    assert "deltamem-mynah (deltamem_mynah:HOOKS)" in str(refused.value)
    assert "deltamem-other (deltamem_other:HOOKS)" in str(refused.value)
    assert registered_hook("llama") == llama
    register_hook("mynah", AttentionHook("mine"))
    assert registered_hook("mynah") == AttentionHook("mine")


def test_a_new_family_takes_a_line(registry):
    """What the README says."""
    config = AutoConfig.for_model("gpt_neo", hidden_size=32, num_layers=1, num_heads=4, attention_types=[[["global"], 1]])
    backbone = AutoModelForCausalLM.from_config(config)
    register_hook("gpt_neo", AttentionHook(attention="attention", o="out_proj", keywords=False))
    # GPT-Neo nests two modules of this name; only the inner one has projections.
    model = get_peft_model(backbone, tiny_config(target_modules=["attn.attention"]))
    assert [*model.new_memory().tensors] == ["transformer.h.0.attn.attention"]
    model(input_ids=random_tokens(1, 3))

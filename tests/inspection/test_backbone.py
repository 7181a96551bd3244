import json
import os
from functools import partial

import pytest
from peft import get_peft_model
from tiny import SIZES, SPECIAL, tiny_backbone
from transformers import AutoConfig
from typer.testing import CliRunner

from deltamem import DeltaMemConfig, backbones
from deltamem.hook import registered as known_hooks
from deltamem.inspection import architectures
from deltamem_cli import app


@pytest.fixture
def folder(tmp_path):
    """Writes a configuration, and nothing else: `folder("llama", option=...)`."""

    def write(model_type, **options):
        AutoConfig.for_model(model_type, **options).save_pretrained(tmp_path / model_type)
        return str(tmp_path / model_type)

    return write


@pytest.fixture
def tiny(folder):
    return lambda model_type, **options: folder(model_type, **{**SIZES, **SPECIAL.get(model_type, {}), **options})


def run(*arguments):
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["inspect", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def figures(*arguments):
    return json.loads(run(*arguments, "--json"))


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma3_text", "falcon_h1"])
@pytest.mark.parametrize(
    ("options", "config"),
    [
        ([], DeltaMemConfig.tsw),
        (["--variant", "msw", "--r", "4"], partial(DeltaMemConfig.msw, r=4)),
        (["--variant", "ssw", "--corrections", "qkvo"], partial(DeltaMemConfig.ssw, corrections=("q", "k", "v", "o"))),
    ],
    ids=["tsw", "msw", "ssw"],
)
def test_the_figures_are_those_of_an_adapter_that_is_attached(model_type, options, config, tiny):
    model = get_peft_model(tiny_backbone(model_type), config(task_type="CAUSAL_LM"))
    memory = model.new_memory()
    found = figures(tiny(model_type), *options)
    assert found["parameters"] == model.get_nb_trainable_parameters()[0]
    assert found["backbone_parameters"] == tiny_backbone(model_type).num_parameters()
    assert found["memory_bytes"] == memory.nbytes
    assert [layer["name"] for layer in found["layers"]] == [*memory.tensors]
    assert [layer["state"] for layer in found["layers"]] == [[*tensor.shape[1:]] for tensor in memory.tensors.values()]
    assert sum(layer["memory_bytes"] for layer in found["layers"]) == memory.nbytes
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]


def test_the_shapes_of_projections_packed_and_not(tiny):
    packed = figures(tiny("phi3"), "--corrections", "kvo")
    assert packed["hook"] == "self_attn: qkv_proj [q k v], o_proj"
    assert packed["layers"][0]["reads"] == 32
    assert packed["layers"][0]["projections"] == {
        "q": {"module": "qkv_proj", "outputs": 32, "width": 64, "corrected": False},
        "k": {"module": "qkv_proj", "outputs": 16, "width": 64, "corrected": True},
        "v": {"module": "qkv_proj", "outputs": 16, "width": 64, "corrected": True},
        "o": {"module": "o_proj", "outputs": 32, "width": 32, "corrected": True},
    }
    assert "qkv_proj[k] 16 of 64, qkv_proj[v] 16 of 64, o_proj 32" in run(tiny("phi3"), "--corrections", "kvo")


def test_layers_without_attention_are_shown_too(tiny):
    mixed = tiny("qwen3_next", num_hidden_layers=4, num_experts=4, layer_types=["linear_attention", "full_attention"] * 2)
    layers = figures(mixed)["layers"]
    names = ["model.layers.0", "model.layers.1.self_attn", "model.layers.2", "model.layers.3.self_attn"]
    assert [layer["name"] for layer in layers] == names
    assert [layer["parameters"] > 0 for layer in layers] == [False, True, False, True]
    assert run(mixed).count("no memory") == 2


def test_as_a_table(tiny):
    table = run(tiny("llama"))
    for expected in ("LlamaForCausalLM", "model.layers.1.self_attn", "q_proj 32, o_proj 32", "One memory takes 512 bytes"):
        assert expected in " ".join(table.split())


def test_a_model_that_reads_images_has_a_memory_in_its_decoder_alone(folder):
    text = {**SIZES, "model_type": "llama"}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    found = figures(folder("llava", text_config=text, vision_config=vision))
    assert found["class"] == "LlavaForConditionalGeneration"
    assert len(found["layers"]) == 2
    assert all("vision" not in layer["name"] for layer in found["layers"])


def test_what_is_inferred_is_called_so(tiny, monkeypatch):
    assert not figures(tiny("llama"))["inferred"]
    monkeypatch.setattr(known_hooks, "_packaged", lambda: {})
    assert figures(tiny("llama"))["inferred"]
    assert "inferred" in run(tiny("llama"))


def test_the_packaged_backbone_is_found_by_its_name(folder, monkeypatch):
    monkeypatch.setattr(backbones, "on_hub", lambda name: False)
    monkeypatch.setattr(backbones, "_packaged_smollm2", lambda: folder("llama", **SIZES))
    assert figures(backbones.SMOLLM2)["model_type"] == "llama"


REFUSED = {
    "no folder": (["/no/such/folder"], "'/no/such/folder' is no file and no folder"),
    "no configuration": (["{tmp}"], "has none of adapter_config.json"),
    "a configuration of nothing": (["{tmp}/broken"], "model_type"),
    "a configuration that makes no model": (["{llama}", "heads"], "transformers makes no model of the type 'llama'"),
    "recurrent": (["{mamba}"], "'mamba' is not supported"),
    "encoder-decoder": (["{t5}"], "'t5' is not supported: it is an encoder-decoder"),
    "width": (["{llama}", "--r", "0"], "r=0 is not accepted"),
    "wider than the model": (["{llama}", "--r", "64"], "r=64 and num_states=1 are not accepted"),
    "variant": (["{llama}", "--variant", "xyz"], "--variant 'xyz' is not accepted; choose one of tsw, ssw, msw"),
    "corrections": (["{llama}", "--corrections", "qx"], "corrections=('q', 'x') is not accepted"),
    "nothing": ([], "give something to inspect or --architectures"),
    "both": (["{llama}", "--architectures"], "give something to inspect or --architectures"),
    "markdown of a model": (["{llama}", "--markdown"], "give something to inspect or --architectures"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_input_ends_in_one_line(arguments, message, tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("deltamem.inspection.backbone.on_hub", lambda name: False)
    monkeypatch.setattr("deltamem.inspection.kind.on_hub", lambda name: False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    small = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 1, "num_heads": 4}
    wrong = {"num_attention_heads": 4, "hidden_act": "no_such_function"} if "heads" in arguments else {}
    places = {"tmp": tmp_path, "llama": tiny("llama", **wrong), "mamba": folder("mamba"), "t5": folder("t5", **small)}
    given = [argument.format(**places) for argument in arguments if argument != "heads"]
    result = CliRunner().invoke(app, ["inspect", *given])
    assert result.exit_code == 2
    assert message in result.stderr
    own = [line for line in result.stderr.splitlines() if line.startswith("deltamem: ")]
    assert len(own) == 1
    assert result.stderr.rstrip().endswith(own[0])
    assert "Traceback" not in result.output
    assert not result.stdout


def test_the_architectures_as_json_and_as_a_table():
    listed = json.loads(run("--architectures", "--json"))
    assert all({*row} == {"model_type", "supported", "attention", "reason"} for row in listed)
    by_type = {row["model_type"]: row for row in listed}
    assert by_type["llama"]["attention"] == "self_attn: q_proj, k_proj, v_proj, o_proj"
    assert by_type["llama"]["reason"] is None
    assert by_type["gpt_neox"]["attention"] == "attention: query_key_value [heads x (q k v)], dense"
    assert not by_type["mamba"]["supported"]
    table = run("--architectures")
    assert f"{sum(row['supported'] for row in listed)} of {len(listed)} supported" in table
    assert by_type["mamba"]["reason"][:20] in table


def test_what_is_not_proven_here_is_not_called_supported(monkeypatch):
    monkeypatch.setattr(architectures, "package_of", lambda model_type: "somebody")
    others = architectures.describe("llama")
    assert not others["supported"]
    assert "somebody" in others["reason"]
    monkeypatch.setattr(architectures, "registered_hook", lambda model_type: None)
    unregistered = architectures.describe("llama")
    assert not unregistered["supported"]
    assert "not tested" in unregistered["reason"]
    assert "encoder-decoder" in architectures.describe("t5")["reason"]


def test_nothing_but_the_configuration_is_read(tiny):
    place = tiny("llama")
    run(place)
    assert os.listdir(place) == ["config.json"]

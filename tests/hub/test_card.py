"""The model card that is saved with an adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from tiny import tiny_adapted, tiny_backbone, tiny_config

from deltamem import DeltaMemConfig
from deltamem.hub.training_record import note_training

RESULT = {"questions": 150, "share": True, "value": 0.95, "low": 0.9, "high": 0.98}
RESULTS = [
    {"task": "facts-4", "group": None, "setting": "memory", "metric": "recall", **RESULT},
    {"task": "facts-4", "group": None, "setting": "none", "metric": "recall", **RESULT, "value": 0.1, "low": 0.05, "high": 0.2},
    {
        "task": "lambada_openai",
        "group": None,
        "setting": "zero",
        "metric": "perplexity",
        **RESULT,
        "share": False,
        "value": 12.34,
    },
]


def saved(folder: Path, name: str = "someone/tiny", **options: Any) -> ModelCard:
    """The card of a new adapter, for a backbone that was loaded by a name."""
    backbone = tiny_backbone()
    backbone.name_or_path = backbone.config.name_or_path = name
    tiny_adapted(tiny_config(**options), backbone=backbone).save_pretrained(folder)
    return ModelCard.load(folder / "README.md")


def test_what_the_hub_reads(tmp_path: Path) -> None:
    data = saved(tmp_path).data
    assert (data.library_name, data.base_model, data.pipeline_tag) == ("peft", "someone/tiny", "text-generation")
    assert {*data.tags} == {"delta-mem", "memory", "transformers", "base_model:adapter:someone/tiny"}


def test_the_snippet_imports_deltamem_first(tmp_path: Path) -> None:
    snippet = saved(tmp_path).text.split("```python\n")[1].split("```")[0]
    assert snippet.startswith("import deltamem ")
    compile(snippet, "card", "exec")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "TSW, one state in each layer, written by every token"),
        ({"write": "message"}, "SSW, one state in each layer, written once for every message"),
        ({"num_states": 4}, "MSW, 4 parallel states in each layer, written by every token"),
        ({"decay": "none"}, "nothing decays"),
        (
            {"corrections": ("k", "v"), "alpha": 2.0},
            "k and v projections of 2 attention layers, scaled by alpha / r = 2 / 4 = 0.5",
        ),
        ({"layers_to_transform": [1]}, "projections of 1 attention layers"),
    ],
)
def test_the_configuration_in_words(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in saved(tmp_path, **options).text


@pytest.mark.parametrize("options", [{}, {"num_states": 4}, {"write": "message", "corrections": ("v",)}])
def test_its_sizes_are_the_models(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny_adapted(tiny_config(**options))
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert f"{model.get_nb_trainable_parameters()[0]:,} trained parameters" in text
    assert f"One memory takes {model.new_memory().nbytes:,} bytes" in text


def test_training_and_evaluation_are_told_where_they_are_known(tmp_path: Path) -> None:
    note_training(tmp_path, "generated facts", ["--data", "facts", "--system", ""])
    (tmp_path / "evaluation.json").write_text(json.dumps({"model": "someone/tiny", "results": RESULTS}))
    card = saved(tmp_path)
    assert "Data: generated facts." in card.text
    assert "deltamem train --data facts --system ''" in card.text
    assert "| facts-4 | memory | recall | 150 | 95.0% (90.0% to 98.0%) |" in card.text
    indexed = {
        (result.dataset_type, result.metric_type, result.metric_name, result.metric_value) for result in card.data.eval_results
    }
    assert indexed == {
        ("facts-4", "recall", "recall, answered with: memory", 0.95),
        ("facts-4", "recall", "recall, answered with: none", 0.1),
        ("lambada_openai", "perplexity", "perplexity, answered with: zero", 12.34),
    }


@pytest.mark.parametrize("wrong", ["{", '{"results": [{"task": "facts"}]}', "[]"])
def test_an_evaluation_that_is_none_is_refused(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "evaluation.json").write_text(wrong)
    with pytest.raises(ValueError, match=r"evaluation\.json is no"):
        saved(tmp_path)


def test_a_folder_of_this_machine_is_told_to_nobody(tmp_path: Path) -> None:
    folder = str(tmp_path / "backbone")
    card = saved(tmp_path / "adapter", name=folder)
    assert card.data.base_model is None
    assert folder not in str(card)


def test_saved_again_it_is_brought_up_to_date(tmp_path: Path) -> None:
    before = str(saved(tmp_path))
    assert str(saved(tmp_path)) == before
    assert "MSW" in saved(tmp_path, num_states=4).text


def test_a_card_that_somebody_wrote_keeps_its_text_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\npipeline_tag: other\n---\n# Mine\n\nMy words.\n")
    card = saved(tmp_path)
    assert card.text.startswith("# Mine\n\nMy words.\n")
    assert "import deltamem" not in card.text
    assert (card.data.license, card.data.pipeline_tag, card.data.base_model) == ("mit", "other", "someone/tiny")
    assert "delta-mem" in card.data.tags


def test_metadata_that_somebody_added_to_a_generated_card_stays(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("library_name: peft", "library_name: peft\nlicense: mit", 1))
    assert saved(tmp_path).data.license == "mit"


def test_a_configuration_alone_has_no_card(tmp_path: Path) -> None:
    DeltaMemConfig().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def test_other_methods_cards_are_pefts(tmp_path: Path) -> None:
    get_peft_model(tiny_backbone(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "delta" not in (tmp_path / "README.md").read_text()

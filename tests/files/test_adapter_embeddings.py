"""The backbone's embeddings in an adapter's file: loaded after a change of the vocabulary, never into a backbone as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import random_tokens, tiny_adapted, tiny_backbone, tiny_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from deltamem.inspection.adapter import inspect_adapter

WEIGHTS = "adapter_model.safetensors"
EMBEDDINGS = {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"}
LONGER = 72  # than the tiny vocabulary

# peft says so whenever it saves or loads embeddings.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def checkpoint(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_backbone(tie_word_embeddings=request.param).save_pretrained(folder)
    return folder


def backbone(checkpoint: Path, tokens: int | None = None, seed: int = 0) -> Any:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the new tokens
        if tokens is not None:
            model.resize_token_embeddings(tokens)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(random_tokens(1, 6)).logits


def numbers(model: nn.Module) -> dict[str, bytes]:
    """The backbone's weights, by the names that they have without a wrapper."""
    own = {name.removeprefix("base_model.model."): weight for name, weight in model.state_dict().items()}
    return {name.replace("base_layer.", ""): w.numpy().tobytes() for name, w in own.items() if ".delta_mem_" not in name}


LOADINGS: dict[str, Callable[[Any, Path], PeftModel]] = {
    "from_pretrained": lambda model, folder: PeftModel.from_pretrained(model, folder),
    "low_cpu_mem_usage": lambda model, folder: PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True),
    # As a trainer resumes, and loads the best model at its end.
    "load_adapter": lambda model, folder: loaded_over(tiny_adapted(backbone=model, seed=8), folder),
}


def loaded_over(model: PeftModel, folder: Path) -> PeftModel:
    model.load_adapter(str(folder), "default", is_trainable=True)
    return model.eval()


@pytest.mark.parametrize("loading", LOADINGS)
def test_an_adapter_of_a_resized_vocabulary_loads_with_the_new_tokens(checkpoint: Path, tmp_path: Path, loading: str) -> None:
    model = tiny_adapted(backbone=backbone(checkpoint, LONGER))
    model.save_pretrained(tmp_path)
    assert {*load_file(tmp_path / WEIGHTS)} >= EMBEDDINGS
    other = backbone(checkpoint, LONGER, seed=5)
    assert numbers(other) != numbers(model)
    loaded = LOADINGS[loading](other, tmp_path)
    assert numbers(loaded) == numbers(model)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.fingerprint() == model.fingerprint()
    assert {*map(str, inspect_adapter(str(tmp_path))["of_the_backbone"])} == EMBEDDINGS


@pytest.mark.parametrize("loading", LOADINGS)
def test_embeddings_as_the_model_has_them_are_accepted(checkpoint: Path, tmp_path: Path, loading: str) -> None:
    model = tiny_adapted(backbone=backbone(checkpoint))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert {*load_file(tmp_path / WEIGHTS)} >= EMBEDDINGS
    loaded = LOADINGS[loading](backbone(checkpoint), tmp_path)
    assert numbers(loaded) == numbers(model)
    assert torch.equal(logits(loaded), logits(model))


def test_they_may_be_in_another_precision_than_the_models_which_stays(checkpoint: Path, tmp_path: Path) -> None:
    model = tiny_adapted(backbone=backbone(checkpoint))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    file = load_file(tmp_path / WEIGHTS)
    save_file({name: weight.bfloat16() if name in EMBEDDINGS else weight for name, weight in file.items()}, tmp_path / WEIGHTS)
    assert numbers(PeftModel.from_pretrained(backbone(checkpoint), tmp_path)) == numbers(model)


def one_number(weight: Tensor) -> Tensor:
    changed = weight.clone()
    changed[5, 5] += 0.01
    return changed


CHANGES: dict[str, tuple[int | None, Callable[[Tensor], Tensor]]] = {
    "other numbers, the vocabulary as it was": (None, one_number),
    "another length, the vocabulary as it was": (None, lambda weight: torch.cat([weight, weight[:1]])),
    "another length than the resized vocabulary": (LONGER, lambda weight: weight[:-1].clone()),
    "NaN, the vocabulary resized": (LONGER, lambda weight: torch.full_like(weight, torch.nan)),
    "whole numbers, the vocabulary resized": (LONGER, lambda weight: weight.long()),
}


@pytest.mark.parametrize("name", sorted(EMBEDDINGS))
@pytest.mark.parametrize("change", CHANGES)
def test_an_embedding_that_is_not_the_models_is_refused(checkpoint: Path, tmp_path: Path, change: str, name: str) -> None:
    tokens, damage = CHANGES[change]
    tiny_adapted(backbone=backbone(checkpoint, tokens)).save_pretrained(tmp_path, save_embedding_layers=True)
    file = load_file(tmp_path / WEIGHTS)
    save_file({**file, name: damage(file[name])}, tmp_path / WEIGHTS)
    model = backbone(checkpoint, tokens)
    before = numbers(model)
    with pytest.raises(ValueError, match=r"not those of the adapter|the adapter's weight"):
        PeftModel.from_pretrained(model, tmp_path)
    assert numbers(model) == before


def test_after_a_change_of_the_vocabulary_no_other_weight_of_the_backbone_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    tiny_adapted(backbone=backbone(checkpoint, LONGER)).save_pretrained(tmp_path)
    name = "base_model.model.model.norm.weight"
    save_file({**load_file(tmp_path / WEIGHTS), name: torch.zeros(32)}, tmp_path / WEIGHTS)
    model = backbone(checkpoint, LONGER)
    before = numbers(model)
    with pytest.raises(ValueError, match=r"norm\.weight has .* nothing in the model"):
        PeftModel.from_pretrained(model, tmp_path)
    assert numbers(model) == before


def test_the_adapters_config_does_not_say_what_the_vocabulary_was(tmp_path: Path) -> None:
    """A file from elsewhere may name any backbone as its own; what counts is the model's own checkpoint."""
    tiny_backbone(vocab_size=70).save_pretrained(tmp_path / "named")
    tiny_backbone().save_pretrained(tmp_path / "real")
    adapted = tiny_adapted(tiny_config(), backbone=backbone(tmp_path / "real"))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "named")
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    path = tmp_path / "adapter" / WEIGHTS
    save_file({name: w * 2 if name in EMBEDDINGS else w for name, w in load_file(path).items()}, path)
    with pytest.raises(ValueError, match="nothing in the model"):
        PeftModel.from_pretrained(backbone(tmp_path / "real"), tmp_path / "adapter")

"""Every Python block of README and the documentation runs, page by page, in order, in one namespace."""

import builtins

import pytest
from doc_pages import LANGUAGES, PAGES, ROOT, Block, blocks_of, name_of, python_blocks
from transformers import Trainer

from deltamem.hook import registered as known_hooks
from deltamem.training.trainer import DeltaMemTrainer


def needs_real_model(page):
    return any("load_backbone(" in block.code or "SmolLM2" in block.code for block in python_blocks(page))


def pages():
    for page in PAGES:
        if python_blocks(page):
            yield pytest.param(page, id=name_of(page), marks=[pytest.mark.real_model] * needs_real_model(page))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with the shipped adapters, and nobody's hooks but the registry's."""
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known_hooks, "_registered", {})
    monkeypatch.setattr(DeltaMemTrainer, "train", two_steps)
    return tmp_path


def two_steps(trainer):
    """A training of two steps, however many its page says."""
    trainer.args.max_steps = 2
    return Trainer.train(trainer)


def run(block: Block, namespace: dict) -> None:
    code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")  # a traceback shows the page's own lines
    if block.raises is None:
        exec(code, namespace)
        return
    with pytest.raises(getattr(builtins, block.raises)):
        exec(code, namespace)


@pytest.mark.parametrize("page", pages())
@pytest.mark.usefixtures("folder")
def test_the_code_of_a_page_runs(page):
    namespace = {"__name__": "__main__"}
    for block in python_blocks(page):
        run(block, namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_in_known_languages(page):
    """A block in another one, or in none, would not be checked."""
    assert {block.language for block in blocks_of(page)} <= {*LANGUAGES, "setup"}

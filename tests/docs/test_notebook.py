"""The notebooks run from top to bottom, and are kept without what they put out."""

import json
import os
import random
import sys
from pathlib import Path

import nbformat
import pytest
from doc_pages import ROOT
from nbclient import NotebookClient
from tiny import tiny_backbone
from tiny_chat import chat_tokenizer

QUICKSTART, ON_A_GPU = (ROOT / "docs" / f"{name}.ipynb" for name in ("quickstart", "train_on_a_gpu"))
# Runs the commands of a notebook in its own process, which has imported what a new process would take ten seconds to import.
COMMANDS = """
import shlex
import sys
from contextlib import nullcontext, redirect_stdout, suppress

from deltamem_cli import app


def run_here(line):
    command, _, file = get_ipython().var_expand(line).partition(" > ")
    name, *arguments = shlex.split(command)
    assert name == "deltamem"
    shown = open(file, "w") if file else nullcontext(sys.stdout)
    with shown as out, redirect_stdout(out), suppress(SystemExit):
        app(arguments)


get_ipython().system = run_here
"""
WORDS = ("Anna", "likes", "teal", "red", "Oslo", "Rome", "answer", "there", "Where", "What", "Bob")


def read(path):
    return nbformat.read(path, as_version=4)


def run(notebook, folder):
    """Execute a notebook in a folder; a cell that raises fails. Its commands come from this environment."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()


def printed(cell):
    """What is seen below a cell; rich, in a kernel, displays where it would print."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def write_chats(path, count):
    rng = random.Random(path.name)
    chats = [
        [{"role": ("user", "assistant")[turn % 2], "content": " ".join(rng.choices(WORDS, k=8))} for turn in range(6)]
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))


@pytest.mark.parametrize("path", [QUICKSTART, ON_A_GPU], ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path):
    assert [cell.outputs for cell in read(path).cells if cell.cell_type == "code" and cell.outputs] == []


@pytest.mark.real_model
def test_the_quick_start_runs(tmp_path):
    notebook = read(QUICKSTART)
    run(notebook, tmp_path)
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_training_on_a_gpu_runs_with_a_tiny_model(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.environ["PATH"])
    tiny_backbone(eos_token_id=3).save_pretrained(tmp_path / "backbone")
    chat_tokenizer().save_pretrained(tmp_path / "backbone")
    write_chats(tmp_path / "chats.jsonl", 6)
    write_chats(tmp_path / "held_out.jsonl", 4)
    notebook = read(ON_A_GPU)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    settings.source += (
        f"\nMODEL, CHATS, STEPS, BATCH = {str(tmp_path / 'backbone')!r}, 'talk:{tmp_path / 'chats.jsonl'}', 2, 2"
        f"\nHELD_OUT, ADAPTER, RESULTS = {str(tmp_path / 'held_out.jsonl')!r}, 'mine', 'results'"
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(COMMANDS))
    run(notebook, tmp_path)
    by_start = {cell.source.split()[0]: printed(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert "steps take about" in by_start["import"]  # the dry run's estimate
    assert "The adapter is in mine." in by_start["!{TRAIN}"]
    assert json.loads((tmp_path / "mine" / "evaluation.json").read_text())["results"]
    assert "continuation" in (tmp_path / "results" / "report.html").read_text()
    assert "not a name on the Hub" in by_start["!deltamem"]  # a folder's adapter is not uploaded

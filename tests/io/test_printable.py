"""What a file says steers no terminal, wherever a command prints it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny_adapted
from tiny_memory import METADATA
from typer.testing import CliRunner, Result

from deltamem.inspection import command
from deltamem.io.printable import all_printable, printable
from deltamem_cli import app

TITLE, CLEAR, C1 = "\x1b]0;pwned\x07", "\x1b[2J", "\x9b2J"
STEERING = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n", "\t"}


def steers(text: str) -> bool:
    return bool({*text} & STEERING)


def inspected(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments])


def memory_with(folder: Path, size: int) -> str:
    """A memory's file, of a size that is accepted or not, with escape codes wherever a file has text."""
    tensors = {f"{TITLE}{C1}model.{layer}": torch.zeros(1, 1, 4, size) for layer in range(2)}
    notes = {**METADATA, "fingerprint": json.dumps(f"{CLEAR}\ud800x")}
    save_file({**tensors, "@tokens": torch.zeros(1, dtype=torch.int64)}, folder / "memory", notes)
    return str(folder / "memory")


def adapter_with(folder: Path, **changes: Any) -> str:
    tiny_adapted().save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def renamed(folder: Path) -> str:
    adapter = adapter_with(folder)
    path = folder / "adapter_model.safetensors"
    save_file({name.replace("layers", f"{TITLE}layers"): w for name, w in load_file(path).items()}, path)
    return adapter


CASES: dict[str, Any] = {
    "a memory": lambda folder: (memory_with(folder, 4),),
    "a damaged memory": lambda folder: (memory_with(folder, 3),),
    "a memory compared": lambda folder: (memory_with(folder, 4), "--compare", memory_with(folder, 4)),
    "an adapter": lambda folder: (adapter_with(folder, base_model_name_or_path=f"{CLEAR}llama"),),
    "an adapter for another model": lambda folder: (adapter_with(folder, backbone={"model_type": TITLE}),),
    "an adapter of another method": lambda folder: (adapter_with(folder, peft_type=f"{CLEAR}LORA"),),
    "an adapter with a wrong option": lambda folder: (adapter_with(folder, write=f"{CLEAR}token"),),
    "an adapter with other names": lambda folder: (renamed(folder),),
    "a name that there is not": lambda folder: (f"./{TITLE}nothing",),
    "a folder of nothing": lambda folder: (str((folder / f"{TITLE}x").absolute()),),
}


@pytest.mark.parametrize("case", CASES)
def test_inspect_prints_no_escape_codes(tmp_path: Path, case: str) -> None:
    done = inspected(*CASES[case](tmp_path))
    assert done.exit_code in (0, 2), done.output
    assert done.output.strip()
    assert not steers(done.output)


def test_without_the_function_they_would_be_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "all_printable", lambda figures: figures)
    monkeypatch.setattr("deltamem.io.printable.printable", lambda text: text)
    tensors = {f"{TITLE}model": torch.zeros(1, 1, 4, 4), "@tokens": torch.zeros(1, dtype=torch.int64)}
    save_file(tensors, tmp_path / "memory", METADATA)
    assert steers(inspected(str(tmp_path / "memory")).output)
    save_file({**tensors, f"{TITLE}model": torch.zeros(1, 1, 4, 3)}, tmp_path / "memory", METADATA)
    assert steers(inspected(str(tmp_path / "memory")).output)


def test_as_json_the_names_are_as_they_are(tmp_path: Path) -> None:
    done = inspected(memory_with(tmp_path, 4), "--json")
    assert not steers(done.output)
    assert json.loads(done.output)["layers"][0]["name"] == f"{TITLE}{C1}model.0"


@given(text=st.text())
def test_a_printable_text_can_be_encoded_and_is_otherwise_the_same(text: str) -> None:
    assert not steers(printable(text))
    assert [*printable(text).encode().decode()] == [c for c in text if c not in STEERING and not "\ud800" <= c <= "\udfff"]
    assert all_printable({text: [text, 1, None]}) == {printable(text): [printable(text), 1, None]}

"""A session's file is loaded as what it says or refused; and no save loses what another session has written."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from damage import cut, flipped, header_end, inserted, json_values
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save
from tiny import tiny_adapted
from tiny_chat import chat_model, chat_tokenizer
from tiny_memory import same

from deltamem import ChatSession
from deltamem.chat.saved import SavedSession
from deltamem.chat.session import FILE

NOTES = [field.name for field in fields(SavedSession)]
# Those that the first files did not have.
LATER = ["first_pass_writes", "template_options", "journal"]
SHORT = {"max_new_tokens": 3, "do_sample": False}


@cache
def parts() -> tuple[Any, Any]:
    return chat_model(), chat_tokenizer()


def new(text: str = "Anna likes teal.") -> ChatSession:
    chat = ChatSession(*parts(), system="Remember everything.")
    chat.observe(text)
    return chat


def opened(folder: Path) -> ChatSession:
    return ChatSession.load(folder, *parts())


def notes_of(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["session"])


@cache
def content() -> bytes:
    """A session's file: one turn in the context, and before it something that is not."""
    with TemporaryDirectory() as folder:
        chat = new()
        chat.reply("What does Anna like?", **SHORT)
        chat.save(folder)
        return (Path(folder) / FILE).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module")
def in_use() -> ChatSession:
    """A session that goes on while files are loaded."""
    return new("Bob lives in Rome.")


def load_bytes(folder: Path, content: bytes, in_use: ChatSession) -> ChatSession | ValueError:
    memory, weights = in_use.memory.clone(), dict(in_use.model.state_dict())
    versions = [weight._version for weight in weights.values()]
    (folder / FILE).write_bytes(content)
    try:
        return opened(folder)
    except ValueError as error:
        return error
    finally:
        assert (folder / FILE).read_bytes() == content
        assert same(in_use.memory, memory)
        assert in_use.messages == []
        after = in_use.model.state_dict()
        assert all(weight is after[name] or torch.equal(weight, after[name]) for name, weight in weights.items())
        assert [weight._version for weight in weights.values()] == versions


def metadata() -> dict[str, str]:
    return json.loads(content()[8 : header_end(content())])["__metadata__"]


def notes() -> dict[str, Any]:
    return json.loads(metadata()["session"])


def with_notes(notes: Any) -> bytes:
    """The file with other notes beside the same memories."""
    return save(load(content()), {**metadata(), "session": notes if isinstance(notes, str) else json.dumps(notes)})


# Damage


@examples(200)
@given(content=st.deferred(lambda: flipped(content()) | cut(content()) | inserted(content())))
def test_damaged_bytes_give_a_value_error_or_a_session(folder: Path, in_use: ChatSession, content: bytes) -> None:
    chat = load_bytes(folder, content, in_use)
    if not isinstance(chat, ValueError):
        said = notes_of(folder / FILE)
        assert chat.messages == said["messages"]
        assert chat.system == said["system"]
        assert all(torch.equal(tensor[0], load(content)[name][0]) for name, tensor in chat.memory.snapshot.to_flat().items())


WRONG_NOTES: dict[str, Callable[[], Any]] = {
    "no json": lambda: "{",
    "a list": lambda: [1],
    "a text": lambda: '"session"',
    "null": lambda: None,
    "empty": lambda: {},
    "deep": lambda: "[" * 100_000,
    "a number beyond what is read": lambda: "9" * 5000,
    "one more": lambda: {**notes(), "more": 1},
    "saved minus once": lambda: {**notes(), "saves": -1},
    "saved half a time": lambda: {**notes(), "saves": 0.5},
    "saved too often": lambda: {**notes(), "saves": 10**4000},
    "messages nested": lambda: {**notes(), "messages": [[[]]]},
    "a message without a role": lambda: {**notes(), "messages": [{"content": "Hello"}]},
    "a message of numbers": lambda: {**notes(), "messages": [{"role": 1, "content": 2}]},
    "a message that is no Unicode": lambda: {**notes(), "messages": [{"role": "user", "content": "\ud800"}]},
    "a system prompt that is no Unicode": lambda: {**notes(), "system": "\ud800"},
    "a system prompt that is a list": lambda: {**notes(), "system": ["Remember"]},
    "tokens beyond the vocabulary": lambda: {**notes(), "written": [10**6 for _ in notes()["written"]]},
    "tokens below 0": lambda: {**notes(), "written": [-1 for _ in notes()["written"]]},
    "tokens that are truth values": lambda: {**notes(), "written": [True for _ in notes()["written"]]},
    "more tokens than passes": lambda: {**notes(), "written": notes()["written"] * 2},
    "no passes": lambda: {**notes(), "passes": []},
    "a first pass that writes a little": lambda: {**notes(), "first_pass_writes": 1},
    "a journal that is a text": lambda: {**notes(), "journal": "Anna likes teal."},
    "a journal whose memories are missing": lambda: {
        **notes(),
        "journal": [{"entries": [], "observed": True, "begins": True}],
    },
    "a message of a journal without a content": lambda: {
        **notes(),
        "journal": [{"entries": [{"id": "a", "role": "user", "time": 0.0, "tokens": 1}], "observed": True, "begins": False}],
    },
    "template options that are a list": lambda: {**notes(), "template_options": ["enable_thinking"]},
    "template options that are none of the template's": lambda: {**notes(), "template_options": {"tokenize": True}},
}


@pytest.mark.parametrize("case", WRONG_NOTES)
def test_wrong_notes_are_refused(folder: Path, in_use: ChatSession, case: str) -> None:
    assert isinstance(load_bytes(folder, with_notes(WRONG_NOTES[case]()), in_use), ValueError)


@pytest.mark.parametrize("name", [name for name in NOTES if name not in LATER])
def test_missing_notes_are_refused(folder: Path, in_use: ChatSession, name: str) -> None:
    fewer = {each: note for each, note in notes().items() if each != name}
    assert isinstance(load_bytes(folder, with_notes(fewer), in_use), ValueError)


def test_notes_of_the_first_files_are_read(folder: Path, in_use: ChatSession) -> None:
    chat = load_bytes(folder, with_notes({name: note for name, note in notes().items() if name not in LATER}), in_use)
    twin = load_bytes(folder, content(), in_use)
    assert isinstance(chat, ChatSession)
    assert isinstance(twin, ChatSession)
    assert chat.reply("Where is Bob?", **SHORT) == twin.reply("Where is Bob?", **SHORT)
    assert same(chat.memory, twin.memory)


@examples(300)
@given(changes=st.dictionaries(st.sampled_from([*NOTES, "more"]), json_values, min_size=1, max_size=3))
def test_any_notes_give_a_value_error_or_a_session(folder: Path, in_use: ChatSession, changes: dict[str, Any]) -> None:
    chat = load_bytes(folder, with_notes({**notes(), **changes}), in_use)
    if not isinstance(chat, ValueError):
        assert chat.messages == changes.get("messages", notes()["messages"])
        assert chat.system == changes.get("system", notes()["system"])


@examples(100)
@given(text=json_values.map(json.dumps) | st.text(max_size=8))
def test_any_text_in_the_place_of_notes_is_refused(folder: Path, in_use: ChatSession, text: str) -> None:
    assert isinstance(load_bytes(folder, with_notes(text), in_use), ValueError)


def test_the_file_that_is_damaged_here_is_a_session(folder: Path, in_use: ChatSession) -> None:
    chat = load_bytes(folder, with_notes(notes()), in_use)
    assert isinstance(chat, ChatSession)
    assert len(chat.messages) == 2


def memory_file(folder: Path) -> None:
    new().memory.save(folder / FILE)


def two_memories(folder: Path) -> None:
    parts()[0].new_memory(2).save(folder / FILE)


def adapter_file(folder: Path) -> None:
    tiny_adapted().save_pretrained(folder)
    shutil.move(folder / "adapter_model.safetensors", folder / FILE)


def other_adapters_session(folder: Path) -> None:
    chat = ChatSession(chat_model(alpha=4.0), parts()[1])
    chat.observe("Anna likes teal.")
    chat.save(folder)


@pytest.mark.parametrize(
    "make", [memory_file, two_memories, adapter_file, other_adapters_session], ids=lambda make: make.__name__
)
def test_a_foreign_file_is_no_session_and_is_not_saved_over(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match=r"session|adapter|memory"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"session|memory"):
        new().save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("missing", ["", "no/such/folder"])
def test_no_session_is_a_file_not_found_error(tmp_path: Path, missing: str) -> None:
    with pytest.raises(FileNotFoundError, match=FILE):
        opened(tmp_path / missing)


# Saves that would lose something


def twice_loaded(root: Path) -> ChatSession:
    new().save(root)
    first, second = opened(root), opened(root)
    first.observe("Bob lives in Rome.")
    first.save(root)
    return second


def loaded_and_still_held(root: Path) -> ChatSession:
    chat = new()
    chat.save(root)
    loaded = opened(root)
    loaded.save(root)
    return chat


def new_where_one_is(root: Path) -> ChatSession:
    new().save(root)
    return new("Bob lives in Rome.")


def anothers_that_was_saved_as_often(root: Path) -> ChatSession:
    new().save(root)
    other = new("Bob lives in Rome.")
    other.save(root / "other")
    return other


def fork_of_a_fork(root: Path) -> ChatSession:
    new().save(root)
    shutil.copytree(root, root / "fork")
    fork = opened(root / "fork")
    fork.observe("Bob lives in Rome.")
    fork.save(root / "fork")
    chat = opened(root)
    chat.save(root)
    return fork


STALE = [twice_loaded, loaded_and_still_held, new_where_one_is, anothers_that_was_saved_as_often, fork_of_a_fork]


@pytest.mark.parametrize("history", STALE, ids=lambda history: history.__name__)
def test_a_save_that_would_lose_something_is_refused(tmp_path: Path, history: Callable[[Path], ChatSession]) -> None:
    stale = history(tmp_path)
    before, memory = (tmp_path / FILE).read_bytes(), stale.memory.clone()
    with pytest.raises(ValueError, match="would be lost"):
        stale.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    assert same(stale.memory, memory)
    stale.save(tmp_path / "elsewhere")  # it is not lost itself
    assert same(opened(tmp_path / "elsewhere").memory, memory)


def test_a_session_may_be_saved_wherever_nothing_is_lost(tmp_path: Path) -> None:
    chat = new()
    for folder in ("one", "one", "two", "one"):  # the third is there already, and all of it is in the session still
        chat.observe("Bob lives in Rome.")
        chat.save(tmp_path / folder)
        assert same(opened(tmp_path / folder).memory, chat.memory)
    (tmp_path / "one" / FILE).unlink()
    chat.save(tmp_path / "one")
    assert notes_of(tmp_path / "one" / FILE)["saves"] == 5

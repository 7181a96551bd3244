"""A session store reads and writes nothing outside its root, whatever it is asked for."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import chat_model, chat_tokenizer
from tiny_memory import same

from deltamem import ChatSession, SessionStore
from deltamem.chat.session import FILE

BAD_NAMES: list[Any] = [
    "",
    ".",
    "..",
    "../outside",
    "../../outside",
    "anna/../../outside",
    "anna/..",
    "a/b",
    "/etc",
    "/",
    "~",
    "\\outside",
    "..\\outside",
    "c:outside",
    "outside\0",
    "\0",
    "anna\n",
    "\nanna",
    "anna ",
    "anna.",
    "Anna",
    "ANNA",
    "а" + "nna",  # Cyrillic
    "ａｎｎａ",  # full width
    "anna\u0301",
    "a\u200bnna",
    "ﬁ",
    "١",  # a digit, in Arabic
    "x" * 65,
    f".{FILE}",
    None,
    7,
    b"anna",
    ["anna"],
    Path("anna"),
]


@cache
def parts() -> tuple[Any, Any]:
    return chat_model(), chat_tokenizer()


def session(text: str = "Anna likes teal.") -> ChatSession:
    chat = ChatSession(*parts())
    chat.observe(text)
    return chat


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    """A store with one session, and another session beside its root."""
    store = SessionStore(tmp_path / "root", *parts(), system="Remember everything.")
    store.save("anna", session())
    session("Bob lives in Rome.").save(tmp_path / "outside")
    return store


def everything(folder: Path) -> dict[str, Any]:
    """All files and links under a folder, with what they hold."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


ACTIONS: dict[str, Callable[[SessionStore, Any], Any]] = {
    "open": lambda store, name: store.open(name),
    "save": lambda store, name: store.save(name, session()),
    "delete": lambda store, name: store.delete(name),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_that_is_not_plain_is_refused(tmp_path: Path, store: SessionStore, name: Any, action: str) -> None:
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"session name .* is not accepted; give 1 to 64"):
        ACTIONS[action](store, name)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["a", "0", "_", "-", "-rf", "user_7-b", "x" * 64])
def test_a_plain_name_is_a_folder_under_the_root(store: SessionStore, name: str) -> None:
    chat = session()
    store.save(name, chat)
    assert (store.root / name / FILE).is_file()
    assert store.names() == sorted({"anna", name})
    assert same(store.open(name).memory, chat.memory)
    store.delete(name)
    assert store.names() == ["anna"]


def link_a_folder(root: Path, outside: Path) -> None:
    (root / "bob").symlink_to(outside, target_is_directory=True)


def link_a_file(root: Path, outside: Path) -> None:
    (root / "bob").mkdir()
    (root / "bob" / FILE).symlink_to(outside / FILE)


def link_to_nothing(root: Path, outside: Path) -> None:
    (root / "bob").symlink_to(outside / "new", target_is_directory=True)


def link_to_another_session(root: Path, outside: Path) -> None:
    (root / "bob").symlink_to(root / "anna", target_is_directory=True)


LINKS = [link_a_folder, link_a_file, link_to_nothing, link_to_another_session]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.__name__)
def test_a_symbolic_link_is_not_followed(
    tmp_path: Path, store: SessionStore, link: Callable[[Path, Path], None], action: str
) -> None:
    link(store.root, tmp_path / "outside")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="is a symbolic link"):
        ACTIONS[action](store, "bob")
    assert store.names() == ["anna"]
    assert everything(tmp_path) == before


def test_deleting_forgets_one_session_and_follows_no_link_in_it(tmp_path: Path, store: SessionStore) -> None:
    store.save("bob", session())
    (store.root / "bob" / f".{FILE}.abcdefgh").write_bytes(b"left over")
    (store.root / "bob" / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    store.delete("bob")
    assert store.names() == ["anna"]
    assert os.listdir(store.root) == ["anna"]
    assert (tmp_path / "outside" / FILE).is_file()
    store.delete("bob")  # there is nothing any more, and that is no error
    assert len(store.open("bob").memory.tokens) == 1
    assert store.open("bob").memory.tokens == [0]


def test_names_are_those_of_sessions_only(store: SessionStore) -> None:
    (store.root / "empty").mkdir()
    (store.root / "Upper").mkdir()
    shutil.copy(store.root / "anna" / FILE, store.root / "Upper")
    (store.root / "a_file").write_bytes(b"")
    (store.root / "folder" / FILE).mkdir(parents=True)
    assert store.names() == ["anna"]
    assert SessionStore(store.root / "none", *parts()).names() == []


def test_a_new_session_has_the_stores_system_prompt_and_leaves_no_trace_until_it_is_saved(store: SessionStore) -> None:
    assert store.open("bob").system == "Remember everything."
    assert store.names() == ["anna"]
    assert os.listdir(store.root) == ["anna"]


def test_one_users_session_is_not_saved_over_anothers(store: SessionStore) -> None:
    bob = session("Bob lives in Rome.")
    store.save("bob", bob)
    before = everything(store.root)
    with pytest.raises(ValueError, match="would be lost"):
        store.save("anna", bob)  # a mix-up of names: both were saved once
    assert everything(store.root) == before

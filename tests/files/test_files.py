"""A file is written whole or not at all, only where a file belongs, and nothing is left behind."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import chat_model, chat_tokenizer
from tiny_memory import random_state, same

from deltamem import ChatSession, DeltaMemState, SessionStore
from deltamem.chat.session import FILE
from deltamem.io import files
from deltamem.io.files import PREFIX, check_regular, write_atomically
from deltamem.io.json_lines import whole_lines

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, devices and locks of POSIX")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def open_socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))  # a socket's path is short


def folder(path: Path) -> None:
    path.mkdir()


NO_FILES: dict[Callable[[Path], None], str] = {
    pipe: "is a pipe, where a file belongs",
    link_to_a_device: "is a device, where a file belongs",
    open_socket: "is a socket, where a file belongs",
    folder: "is a folder, where a file belongs",
}


def kind(path: Path) -> int:
    return stat.S_IFMT(os.stat(path).st_mode)


def session() -> ChatSession:
    return ChatSession(chat_model(), chat_tokenizer())


# Each is done with a path that leads to no file.
ACTIONS: dict[str, Callable[[Path], Any]] = {
    "a memory is saved": lambda path: random_state().save(path),
    "a session is saved": lambda path: session().save(path.parent),
    "a session is loaded": lambda path: ChatSession.load(path.parent, chat_model(), chat_tokenizer()),
    "a memory is loaded": lambda path: DeltaMemState.load(path),
    "a session of a store is opened": lambda path: store(path).open(path.parent.name),
    "lines are read": lambda path: whole_lines(path),
}


def store(path: Path) -> SessionStore:
    return SessionStore(path.parent.parent, chat_model(), chat_tokenizer())


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("make", [pipe, open_socket], ids=lambda make: make.__name__)
def test_what_is_no_file_is_refused_and_stays(tmp_path: Path, make: Callable[[Path], None], action: str) -> None:
    path = tmp_path / "anna" / FILE
    path.parent.mkdir()
    make(path)
    before = kind(path)
    with pytest.raises(ValueError, match=NO_FILES[make]):
        ACTIONS[action](path)
    assert kind(path) == before
    assert os.listdir(path.parent) == [FILE]


@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
def test_nothing_is_put_in_the_place_of_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    before = kind(tmp_path / "x")
    with pytest.raises(ValueError, match=NO_FILES[make]):
        write_atomically(tmp_path / "x", b"new")
    assert kind(tmp_path / "x") == before
    assert os.listdir(tmp_path) == ["x"]


def test_without_the_check_a_pipe_would_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(tmp_path / "x")
    monkeypatch.setattr(files, "check_regular", lambda path: None)
    write_atomically(tmp_path / "x", b"new")
    assert kind(tmp_path / "x") == stat.S_IFREG


def test_a_file_or_nothing_is_accepted(tmp_path: Path) -> None:
    check_regular(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    check_regular(tmp_path / "link")
    write_atomically(tmp_path / "file", b"old")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE(os.stat(tmp_path / "file").st_mode) == 0o600


@pytest.mark.parametrize("length", [1, 244, 245, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path, length: int) -> None:
    state = random_state()
    state.save(tmp_path / ("x" * length))
    assert same(DeltaMemState.load(tmp_path / ("x" * length)), state)
    assert os.listdir(tmp_path) == ["x" * length]


# Temporary files


def killed_while_saving(folder: Path) -> None:
    """A process that is killed when all is written but the rename."""
    code = (  # the module alone: the package would import torch
        "import os, signal, sys\nfrom files import write_atomically\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nwrite_atomically(sys.argv[1], b'half')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code, folder / "x"], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


def test_the_next_save_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", b"old")
    killed_while_saving(tmp_path)
    assert len(os.listdir(tmp_path)) == 2
    assert (tmp_path / "x").read_bytes() == b"old"
    others = {".session.safetensors.abcd", f"{PREFIX}folder"}
    (tmp_path / ".session.safetensors.abcd").touch()
    (tmp_path / f"{PREFIX}folder").mkdir()  # whatever it is, it is none of ours
    write_atomically(tmp_path / "y", b"new")
    assert {*os.listdir(tmp_path)} == {"x", "y", *others}


def test_a_file_that_is_being_written_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, reached, go_on = os.replace, threading.Event(), threading.Event()

    def wait(source: str, target: Path) -> None:
        if target.name == "slow":
            reached.set()
            assert go_on.wait(60)
        replace(source, target)

    monkeypatch.setattr(os, "replace", wait)
    slow = threading.Thread(target=write_atomically, args=(tmp_path / "slow", b"slow"))
    slow.start()
    assert reached.wait(60)
    write_atomically(tmp_path / "fast", b"fast")
    assert len(os.listdir(tmp_path)) == 2
    go_on.set()
    slow.join()
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == {"slow": b"slow", "fast": b"fast"}


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    mkstemp = files.tempfile.mkstemp

    def make(**options: Any) -> tuple[int, str]:
        handle, path = mkstemp(**options)
        made.append(path)
        if len(made) == 1:
            os.unlink(path)  # as another process does that takes it for a left-over
        return handle, path

    monkeypatch.setattr(files.tempfile, "mkstemp", make)
    write_atomically(tmp_path / "x", b"new")
    assert len(made) == 2
    assert (tmp_path / "x").read_bytes() == b"new"


# Deleting


def test_a_pipe_in_the_place_of_a_session_is_not_waited_for(tmp_path: Path) -> None:
    root = SessionStore(tmp_path, chat_model(), chat_tokenizer())
    pipe(tmp_path / "anna")
    with pytest.raises(ValueError, match="is no session's folder"):
        root.delete("anna")
    assert kind(tmp_path / "anna") == stat.S_IFIFO
    (tmp_path / "bob").mkdir()
    pipe(tmp_path / "bob" / FILE)
    root.delete("bob")
    assert os.listdir(tmp_path) == ["anna"]


@pytest.mark.parametrize("held", ["opened", "saved"])
def test_a_deleted_session_is_not_written_again_by_who_holds_it(tmp_path: Path, held: str) -> None:
    root = SessionStore(tmp_path, chat_model(), chat_tokenizer())
    chat = root.open("anna")
    root.save("anna", chat)
    chat = root.open("anna") if held == "opened" else chat
    root.save("anna", chat)  # while it is there, it is saved as ever
    SessionStore(tmp_path, root.model, root.tokenizer).delete("anna")  # as another process does
    chat.observe("Anna likes teal.")
    memory = chat.memory.clone()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'anna' was deleted since .* under another name"):
            root.save("anna", chat)
        assert os.listdir(tmp_path) == []
    assert same(chat.memory, memory)
    root.save("bob", chat)
    assert same(root.open("bob").memory, memory)
    new = root.open("anna")  # the name is free again
    assert new.memory.tokens == [0]
    root.save("anna", new)
    assert root.names() == ["anna", "bob"]

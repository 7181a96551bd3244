"""Whatever goes wrong while a memory or a session is saved: what is in the file afterwards is the old or the new one, whole."""

import os
import signal
import stat
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from random import Random

import pytest
import saver
from failing_disk import AFTER, BEFORE, ERRORS, failing
from nightly import by_day
from saver import number_in, numbered, parts, save_forever
from tiny_memory import random_state, same

from deltamem import ChatSession, DeltaMemState
from deltamem.chat.session import FILE

MOST_SECONDS = 0.03


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", [*BEFORE, *AFTER])
@pytest.mark.parametrize("existing", [True, False])
def test_a_memory_is_saved_whole_or_not_at_all(tmp_path: Path, existing: bool, step: str, error: str) -> None:
    path, old, new = tmp_path / "memory.safetensors", random_state(seed=1), random_state(seed=2)
    if existing:
        old.save(path)
    with failing(step, error):
        new.save(path)
    there = new if step in AFTER else old if existing else None
    assert os.listdir(tmp_path) == ([] if there is None else [path.name])
    if there is not None:
        assert same(DeltaMemState.load(path), there)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", [*BEFORE, *AFTER])
def test_a_session_is_saved_whole_or_not_at_all_and_can_be_saved_again(tmp_path: Path, step: str, error: str) -> None:
    chat = numbered(ChatSession(*parts()), 1)
    chat.save(tmp_path)
    numbered(chat, 2)
    with failing(step, error):
        chat.save(tmp_path)
    assert number_in(tmp_path) == (2 if step in AFTER else 1)
    assert os.listdir(tmp_path) == [FILE]
    numbered(chat, 3).save(tmp_path)
    assert number_in(tmp_path) == 3


@pytest.mark.skipif(os.name != "posix", reason="needs a process that can be started fast, and killed")
def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not forked from this process, whose threads' locks a child would find closed for ever.
    processes = get_context("forkserver")
    monkeypatch.setenv("PYTHONPATH", str(Path(saver.__file__).parent))
    processes.set_forkserver_preload(["saver"])
    random, number = Random(0), 1
    numbered(ChatSession(*parts()), number).save(tmp_path)
    for _ in by_day(range(4), range(10)):
        child = processes.Process(target=save_forever, args=(tmp_path,), daemon=True)
        child.start()
        while number_in(tmp_path) == number and child.is_alive():  # until it has saved once, however slow the machine is
            time.sleep(0.001)
        time.sleep(random.uniform(0, MOST_SECONDS))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL  # it was saving until then
        assert number_in(tmp_path) > number
        number = number_in(tmp_path)


LEFT_OVER: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "whole": lambda content: content,
}


@pytest.mark.parametrize("kind", LEFT_OVER)
def test_a_temporary_file_that_was_left_over_does_no_harm(tmp_path: Path, kind: str) -> None:
    chat = numbered(ChatSession(*parts()), 1)
    chat.save(tmp_path)
    left = LEFT_OVER[kind]((tmp_path / FILE).read_bytes())
    (tmp_path / f".{FILE}.abcdefgh").write_bytes(left)
    numbered(chat, 2).save(tmp_path)
    assert number_in(tmp_path) == 2
    assert (tmp_path / f".{FILE}.abcdefgh").read_bytes() == left


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_what_is_saved_is_for_its_owner_alone(tmp_path: Path) -> None:
    random_state().save(tmp_path / "memory.safetensors")
    numbered(ChatSession(*parts()), 1).save(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}

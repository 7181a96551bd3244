"""Several threads and processes on one database, and processes that are killed."""

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import pytest
import store_saver
from nightly import EVERY_NIGHT
from store_saver import add_turns, save_forever, take_lease
from stored import KEY, check_whole, with_turns

from deltamem.store import Stale, Store

KILLS = 100 if EVERY_NIGHT else 3
WORKERS, TURNS = 3, 10

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs processes that can be started fast, and killed")


@pytest.fixture
def processes(monkeypatch):
    # Not forked from this process, whose threads' locks a child would find closed for ever.
    processes = get_context("forkserver")
    monkeypatch.setenv("PYTHONPATH", str(Path(store_saver.__file__).parent), prepend=os.pathsep)
    processes.set_forkserver_preload(["store_saver"])
    return processes


def test_one_of_many_threads_changes_a_version(store):
    memory = with_turns(store, 1)

    def save(number):
        try:
            return store.save(replace(memory, state=str(number).encode()))
        except Stale:
            return None

    with ThreadPoolExecutor(8) as threads:
        (saved,) = filter(None, threads.map(save, range(8)))
    assert store.load(KEY) == saved


def test_processes_lose_nothing_that_others_save(url, store, processes):
    with_turns(store, 0)
    with ProcessPoolExecutor(WORKERS, processes) as pool:
        list(pool.map(add_turns, [url] * WORKERS, [TURNS] * WORKERS))
    assert check_whole(store).turn == WORKERS * TURNS


def test_processes_open_a_new_database_together_and_one_gets_the_lease(url, processes):
    with ProcessPoolExecutor(WORKERS, processes) as pool:
        assert sorted(pool.map(take_lease, [url] * WORKERS, "abc")) == [False, False, True]


def test_threads_open_a_new_database_together(url):
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(take_lease, [url] * 8, "abcdefgh")) == 1


def test_a_process_that_is_killed_has_stored_all_that_it_acknowledged(url, store, processes):
    version, random = with_turns(store, 0).version, Random(0)
    for _ in range(KILLS):
        reader, writer = processes.Pipe(duplex=False)
        child = processes.Process(target=save_forever, args=(url, writer), daemon=True)
        child.start()
        writer.close()
        reader.recv()  # it has saved once, however slow the machine is
        time.sleep(random.uniform(0, 0.1))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL  # it was saving until then
        acknowledged = last(reader, version + 1)
        memory = check_whole(store)
        assert acknowledged <= memory.version <= acknowledged + 1  # what was not acknowledged may be stored
        assert memory.version == memory.turn + 1 > version
        version = memory.version


def last(reader, first):
    """The last number in a pipe whose writer is gone."""
    number = first
    try:
        while True:
            number = reader.recv()
    except EOFError:
        return number


def test_a_torn_change_would_be_seen(store):
    memory = with_turns(store, 2)
    store.save(replace(memory, state=b"state 3"))
    with pytest.raises(AssertionError):
        check_whole(store)


def test_a_store_is_shared_by_more_threads_than_it_has_connections(url):
    store = Store(url)
    with_turns(store, 1)
    with ThreadPoolExecutor(40) as threads:
        assert len({memory.salt for memory in threads.map(store.load, [KEY] * 200)}) == 1
    store.close()

"""Servers that are killed, databases that go away: what was acknowledged stays, and nothing is half there."""

import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import httpx
import pytest
import served_process
from nightly import EVERY_NIGHT
from served import serving
from served_process import serve
from talkers import LOCAL, Talkers

from deltamem.store import Key, Store

KILLS = 100 if EVERY_NIGHT else 1
NAMES = ["anna", "bob", "cleo", "dan"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs processes that can be started fast, and killed")


@pytest.fixture
def start(monkeypatch):
    """Starts a server in a process, and returns both."""
    # Not forked from this process, whose threads' locks a child would find closed for ever.
    processes = get_context("forkserver")
    monkeypatch.setenv("PYTHONPATH", str(Path(served_process.__file__).parent), prepend=os.pathsep)
    processes.set_forkserver_preload(["served_process"])
    children = []

    def start(url):
        reader, writer = processes.Pipe(duplex=False)
        child = processes.Process(target=serve, args=(url, writer), daemon=True)
        child.start()
        writer.close()
        children.append(child)
        return child, reader.recv()

    yield start
    for child in children:
        child.kill()
        child.join()


def kill_after(seconds, child, talkers):
    """Kill a process some time after its first answer, however slow the machine is; the event is set when it is gone."""
    gone, before = threading.Event(), talkers.answers

    def kill():
        while talkers.answers == before:
            time.sleep(0.01)
        time.sleep(seconds)
        child.kill()
        child.join()
        gone.set()

    threading.Thread(target=kill, daemon=True).start()
    return gone


def test_a_server_that_is_killed_has_stored_all_that_it_acknowledged(url, start):
    talkers, random, store = Talkers(NAMES), Random(0), Store(url)
    for _ in range(KILLS):
        child, place = start(url)
        talkers.talk([place], kill_after(random.uniform(0, 1), child, talkers).is_set)
        assert child.exitcode == -signal.SIGKILL
    _, place = start(url)
    for name in NAMES:  # a memory in a killed server's hands is free again
        body = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Noted."}]}
        assert httpx.post(f"{place}/v1/memories/{name}/messages", json=body, timeout=60).is_success
    assert talkers.answers >= KILLS
    assert not talkers.refused
    talkers.check(store)
    talkers.check_replays(store, place)
    store.close()


def test_a_lost_turn_and_a_torn_one_would_be_seen(tmp_path):
    with serving(tmp_path / "memories.db", journal=True) as served:
        talkers, turns = Talkers(["anna"]), iter([False, True])
        talkers.talk([served.url], lambda: next(turns))
        store = served.memories.store
        talkers.check(store)
        talkers.check_replays(store, served.url)
        kept = store.load(Key(LOCAL, "anna"))
        torn = store.save(replace(kept, state=served.memories.engine.model.new_memory().to_bytes()))
        with pytest.raises(AssertionError):
            talkers.check_replays(store, served.url)
        store.save(replace(store.load(torn.key), seen=()))
        with pytest.raises(AssertionError):
            talkers.check(store)
        talkers.told["anna"].append(("Anna likes nothing .", "lost"))
        with pytest.raises(AssertionError, match="lost"):
            talkers.check(store)


def test_without_its_database_a_server_refuses_and_with_it_serves_again(server):
    with serving(server.new_database(), journal=True) as served, served.client() as client:
        body = {"model": "tiny", "max_tokens": 4, "user": "anna", "messages": [{"role": "user", "content": "Hello"}]}

        def statuses():
            asked = [client.post("/v1/chat/completions", json={**body, "stream": stream}) for stream in (False, True)]
            return [response.status_code for response in [*asked, client.get("/v1/memories/anna"), client.get("/health")]]

        assert statuses() == [200] * 4
        server.stop("immediate")
        try:
            assert statuses() == [503, 503, 503, 200]
            refused = client.get("/v1/memories/anna")
            assert str(server.folder) not in refused.text
            assert "retry-after" in refused.headers
        finally:
            server.start()
        assert statuses() == [200] * 4


def test_of_two_replicas_one_is_killed_and_the_other_goes_on(server, start):
    database = server.new_database()
    (first, one), (_, other) = start(database), start(database)
    talkers, urls = Talkers(NAMES), [one, other]
    gone, late = kill_after(1, first, talkers), threading.Event()

    def leave_out():
        gone.wait()
        urls.remove(one)
        before = talkers.answers
        while talkers.answers < before + 10:
            time.sleep(0.01)
        late.set()

    watching = threading.Thread(target=leave_out)
    watching.start()
    talkers.talk(urls, late.is_set)
    watching.join()
    store = Store(database)
    talkers.check(store)
    assert not talkers.refused
    talkers.check_replays(store, other)
    store.close()

"""Many users at once, who fork, delete, leave in mid-stream and lose patience: each has what it would have alone."""

import asyncio
import os
import sqlite3
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random

import httpx
import pytest
from nightly import by_day
from served import serving
from stored_states import same_state
from turns import assistant, user

from deltamem import DeltaMemState
from deltamem.serve.batch import JoinedRows
from deltamem.store import Key

USERS, TURNS = by_day((6, 48), (64, 2000))
LEFT = 4  # messages of the history that a client sends
GROWTH = 64 * 2**20  # bytes that the allocators of Python and torch may keep; a cache for each turn would be more
WORDS = "Anna Bob likes lives in teal red Oslo Rome Hello there".split()
COMPLETIONS = "/v1/chat/completions"


class User:
    """One user of the server, and what happened in order: turns with their answers, forks and deletions."""

    def __init__(self, number, client):
        self.random, self.client = Random(number), client
        self.names = (f"user{number}.{version}" for version in count())
        self.memory, self.left = next(self.names), set()  # the memory that is talked to, and all that there are
        self.chat, self.happened, self.copies = [], [], []

    async def act(self):
        """Do one thing, mostly a turn."""
        others = (self.fork, self.delete, self.leave, self.lose_patience)
        await (self.random.choice(others)() if self.memory in self.left and self.random.random() < 0.3 else self.turn())

    def body(self, tokens=6):
        self.chat = [*self.chat[-LEFT:], user(" ".join(self.random.choices(WORDS, k=self.random.randrange(1, 8))))]
        write = self.random.choice(["after", "during"])
        memory = {"id": self.memory, "write": write}
        return {"model": "tiny", "temperature": 0, "max_tokens": tokens, "messages": [*self.chat], "memory": memory}

    def answered(self, body, answer):
        self.happened.append(("turn", self.memory, body, answer))
        self.chat.append(assistant(answer))
        self.left.add(self.memory)

    async def turn(self):
        body = self.body()
        response = await self.client.post(COMPLETIONS, json=body)
        assert response.is_success, response.text
        self.answered(body, response.json()["choices"][0]["message"]["content"])

    async def fork(self):
        to = next(self.names)
        response = await self.client.post(f"/v1/memories/{self.memory}/fork", json={"id": to})
        assert response.is_success, response.text
        self.happened.append(("fork", self.memory, to))
        self.left.add(to)
        self.memory = self.random.choice([self.memory, to])

    async def delete(self):
        assert (await self.client.delete(f"/v1/memories/{self.memory}")).is_success
        self.happened.append(("delete", self.memory))
        self.left.discard(self.memory)
        self.chat = []

    async def leave(self):
        """Close a stream after its first event. The server writes the turn, or drops it, but nothing in between."""
        before = await self.entries()
        body = self.body(tokens=40)
        async with self.client.stream("POST", COMPLETIONS, json={**body, "stream": True}) as response:
            async for _ in response.aiter_lines():
                break
        # Whatever waits for the memory comes after the turn.
        assert (await self.client.post(f"/v1/memories/{self.memory}/rollback", json={"name": "none"})).status_code == 404
        entries = await self.entries()
        if entries == before:
            self.chat.pop()
        else:
            assert entries[-2]["content"] == body["messages"][-1]["content"]
            self.answered(body, entries[-1]["content"])

    async def entries(self):
        return (await self.client.get(f"/v1/memories/{self.memory}/messages")).json()["data"]

    async def lose_patience(self):
        """Break off an answer that does not come, on a copy: whether the server had begun is not known."""
        copy = next(self.names)
        assert (await self.client.post(f"/v1/memories/{self.memory}/fork", json={"id": copy})).is_success
        self.copies.append(copy)
        body = self.body(tokens=40)
        self.chat.pop()
        with suppress(httpx.ReadTimeout):
            body["memory"]["id"] = copy
            await self.client.post(COMPLETIONS, json=body, timeout=httpx.Timeout(60, read=0.02))

    async def again(self, client):
        """Do what happened once more, on another server, and compare the answers."""
        for kind, memory, *more in self.happened:
            if kind == "turn":
                response = await client.post(COMPLETIONS, json=more[0])
                assert response.json()["choices"][0]["message"]["content"] == more[1]
            elif kind == "fork":
                response = await client.post(f"/v1/memories/{memory}/fork", json={"id": more[0]})
            else:
                response = await client.delete(f"/v1/memories/{memory}")
            assert response.is_success, response.text


def memory_in_use():
    """The bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def state(served, name):
    return DeltaMemState.from_bytes(served.memories.store.load(Key("local", name)).state)


def async_client(served):
    return httpx.AsyncClient(base_url=served.url, timeout=120, limits=httpx.Limits(max_connections=USERS + 4))


async def load(served):
    """Let all users act, in an order that the machine decides; return them, and the memory in use early and at the end."""
    async with async_client(served) as client:
        users = [User(number, client) for number in range(USERS)]

        async def act(user, times):
            for _ in range(times):
                await user.act()

        each = TURNS // USERS
        await asyncio.gather(*(act(user, each // 2) for user in users))
        early = memory_in_use()
        await asyncio.gather(*(act(user, each - each // 2) for user in users))
        return users, early, memory_in_use()


async def until_idle(served):
    """Wait for the turns whose clients have left."""
    while served.memories._tasks or served.memories.engine.running or served.memories.engine.waiting:
        await asyncio.sleep(0.05)


async def check_replays(served, names):
    async with async_client(served) as client:
        for name in names:
            before = state(served, name)
            if before.tokens != [0]:
                assert (await client.post(f"/v1/memories/{name}/replay")).is_success
                assert same_state(before, state(served, name)), name


async def run_alone(served, users):
    async with async_client(served) as client:
        for one in users:
            await one.again(client)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use where Linux says it")
def test_under_load_each_user_has_what_they_would_have_alone(tmp_path):
    file = tmp_path / "memories.db"
    with serving(file, journal=True, rows=6, waiting=2 * USERS) as served, serving(tmp_path / "alone.db", rows=1) as alone:
        users, early, late = asyncio.run(load(served))
        assert late - early < GROWTH
        asyncio.run(asyncio.wait_for(until_idle(served), 60))
        asyncio.run(run_alone(alone, users))
        for one in users:
            for name in one.left:
                assert same_state(state(served, name), state(alone, name)), name
        asyncio.run(check_replays(served, [name for one in users for name in (*one.left, *one.copies)]))
        check_nothing_is_left(served, file)
    kinds = {event[0] for one in users for event in one.happened}
    assert kinds == {"turn", "fork", "delete"}
    assert any(one.copies for one in users)


def check_nothing_is_left(served, file):
    engine, memories = served.memories.engine, served.memories
    assert (engine.running, engine.waiting, memories._tasks, {**memories.claims._locks}) == (0, 0, set(), {})
    assert isinstance(engine._batch, JoinedRows)
    assert engine._batch._table.rows == len(engine._batch._memories) == 0
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT count(*) FROM leases").fetchone() == (0,)


def test_a_turn_that_takes_too_long_leaves_nothing(tmp_path):
    file = tmp_path / "memories.db"
    with serving(file, journal=True, seconds=0.0) as served, served.client() as client:
        body = {"model": "tiny", "messages": [user("Hello")], "user": "late", "max_tokens": 200}
        for stream in (False, True):
            assert client.post(COMPLETIONS, json={**body, "stream": stream}).status_code == 504
        assert client.post("/v1/memories/late/messages", json={"messages": [user("Hello")]}).status_code == 504
        assert client.get("/v1/memories/late").json()["turn"] == 0
        asyncio.run(asyncio.wait_for(until_idle(served), 60))
        check_nothing_is_left(served, file)

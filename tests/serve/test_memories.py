"""What can be done with a served memory apart from talking to it."""

import time

import httpx
import pytest
from served import serving
from stored_states import same_state as same

from deltamem import DeltaMemState
from deltamem.serve.batch import JoinedRows
from deltamem.store import Key

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 6}
LOCAL = "local"


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


def ok(response):
    assert response.is_success, response.text
    return response.json()


def talk(client, memory, *texts, write=None):
    """A conversation, of which the client sends all at each turn."""
    chat = []
    for text in texts:
        chat.append({"role": "user", "content": text})
        body = {**GREEDY, "messages": chat, "memory": {"id": memory, "write": write}}
        chat.append(ok(client.post("/v1/chat/completions", json=body))["choices"][0]["message"])
    return chat


def state(served, memory, tenant=LOCAL):
    return DeltaMemState.from_bytes(served.memories.store.load(Key(tenant, memory)).state)


def test_a_memory_from_its_beginning_to_its_end(client, served):
    made = ok(client.post("/v1/memories", json={"id": "life", "journal": True, "ttl": 1000}))
    assert (made["id"], made["version"], made["tokens"], made["journal"]) == ("life", 1, 0, True)
    assert client.post("/v1/memories", json={"id": "life"}).status_code == 409
    told = ok(client.post("/v1/memories/life/messages", json={"messages": [{"role": "user", "content": "Anna likes teal."}]}))
    assert told["written"] == told["tokens"] > 0
    talk(client, "life", "Hello there")
    shown = ok(client.get("/v1/memories/life"))
    assert shown["turn"] == 2
    assert shown["tokens"] > told["tokens"]
    assert all(norm > 0 for norm in shown["norms"].values())
    assert "life" in [one["id"] for one in ok(client.get("/v1/memories"))["data"]]
    assert ok(client.delete("/v1/memories/life"))["deleted"]
    assert client.get("/v1/memories/life").status_code == 404
    assert client.delete("/v1/memories/life").status_code == 404


@pytest.mark.parametrize(("limit", "status"), [(0, 400), (1, 200), (1000, 200), (1001, 400), (-(2**63), 400)])
def test_a_page_of_memories_has_its_bounds(client, limit, status):
    assert client.get("/v1/memories", params={"limit": limit}).status_code == status


def test_a_request_without_a_name_leaves_nothing(client):
    before = ok(client.get("/v1/memories"))
    talk(client, None, "Hello there")
    assert ok(client.get("/v1/memories")) == before


def test_read_only_changes_nothing(client, served):
    talk(client, "read", "Anna likes teal.")
    before = served.memories.store.load(Key(LOCAL, "read"))
    body = {**GREEDY, "messages": [{"role": "user", "content": "Hello there"}], "memory": {"id": "read", "write": False}}
    ok(client.post("/v1/chat/completions", json=body))
    assert served.memories.store.load(Key(LOCAL, "read")) == before


def test_reading_makes_no_memory(client):
    body = {**GREEDY, "messages": [{"role": "user", "content": "Hello there"}]}
    read = ok(client.post("/v1/chat/completions", json={**body, "memory": {"id": "never", "write": False}}))
    assert read["choices"] == ok(client.post("/v1/chat/completions", json=body))["choices"]
    assert client.get("/v1/memories/never").status_code == 404


def test_methods_that_are_made_up_add_no_metrics(client):
    for method in ("ONE", "TWO"):
        assert not client.request(method, "/health").is_success
    text = client.get("/metrics").text
    assert 'method="other"' in text or "ONE" not in text
    assert 'method="TWO"' not in text


def test_the_memory_is_named_in_the_body_in_a_header_or_by_the_user(client, served):
    messages = [{"role": "user", "content": "Anna likes teal."}]
    for name, body, headers in (
        ("by-body", {"memory": {"id": "by-body"}, "user": "other"}, {"X-Memory-Id": "another"}),
        ("by-header", {"user": "other"}, {"X-Memory-Id": "by-header"}),
        ("by-user", {"user": "by-user"}, {}),
    ):
        ok(client.post("/v1/chat/completions", json={**GREEDY, "messages": messages, **body}, headers=headers))
        assert state(served, name).tokens[0] > 0
    assert {"other", "another"}.isdisjoint(one["id"] for one in ok(client.get("/v1/memories"))["data"])


@pytest.mark.parametrize("write", ["after", "during"])
def test_a_forgotten_message_was_never_said(client, served, write):
    name = f"forget-{write}"
    chat = talk(client, name, *(f"Anna likes {word}." for word in ("teal", "red", "Oslo")), write=write)
    entries = ok(client.get(f"/v1/memories/{name}/messages"))["data"]
    forgotten = entries[2]
    assert forgotten["content"] == "Anna likes red."
    ok(client.delete(f"/v1/memories/{name}/messages/{forgotten['id']}"))
    for turn in ([chat[0], chat[1]], [chat[0], chat[1], chat[3]], [chat[0], chat[1], chat[3], chat[4], chat[5]]):
        ok(client.post(f"/v1/memories/{name}-never/messages", json={"messages": turn}))
    assert same(state(served, name), state(served, f"{name}-never"))
    talk(client, f"{name}-said", "Anna likes teal.", "Anna likes red.", "Anna likes Oslo.", write=write)
    assert not same(state(served, name), state(served, f"{name}-said"))
    # A client that sends it again in its history does not bring it back, nor does the model see it.
    chat.append({"role": "user", "content": "Hello"})
    seen = ok(client.post("/v1/chat/completions", json={**GREEDY, "messages": chat, "memory": {"id": name, "write": False}}))
    without = [message for number, message in enumerate(chat) if number != 2]
    never = {**GREEDY, "messages": without, "memory": {"id": f"{name}-never", "write": False}}
    assert seen["choices"] == ok(client.post("/v1/chat/completions", json=never))["choices"]
    assert client.delete(f"/v1/memories/{name}/messages/{forgotten['id']}").status_code == 404


def test_snapshots_forks_and_the_way_back(client, served):
    talk(client, "versions", "Anna likes teal.")
    ok(client.post("/v1/memories/versions/snapshots", json={"name": "early"}))
    early = state(served, "versions")
    talk(client, "versions", "Bob lives in Oslo.")
    ok(client.post("/v1/memories/versions/fork", json={"id": "branch"}))
    assert same(state(served, "branch"), state(served, "versions"), 0)
    assert not same(state(served, "versions"), early)
    ok(client.post("/v1/memories/versions/rollback", json={"name": "early"}))
    assert same(state(served, "versions"), early, 0)
    said = [entry["content"] for entry in ok(client.get("/v1/memories/versions/messages"))["data"]]
    assert "Anna likes teal." in said
    assert "Bob lives in Oslo." not in said
    assert "Bob lives in Oslo." in [entry["content"] for entry in ok(client.get("/v1/memories/branch/messages"))["data"]]
    talk(client, "versions", "Bob lives in Oslo.")  # told anew, it is written again
    assert same(state(served, "versions"), state(served, "branch"))
    assert client.post("/v1/memories/versions/rollback", json={"name": "never"}).status_code == 404


def test_a_fork_from_before_a_message(client, served):
    chat = talk(client, "past", *(f"Anna likes {word}." for word in ("teal", "red", "Oslo")))
    ok(client.post("/v1/memories/past/snapshots", json={"name": "late"}))
    said = ok(client.get("/v1/memories/past/messages"))["data"]
    ok(client.post("/v1/memories/past/fork", json={"id": "then", "before": said[4]["id"]}))
    ok(client.post("/v1/memories/two-turns/messages", json={"messages": chat[:2]}))
    ok(client.post("/v1/memories/two-turns/messages", json={"messages": chat[:4]}))
    assert same(state(served, "then"), state(served, "two-turns"))
    assert ok(client.get("/v1/memories/then"))["snapshots"] == []
    assert ok(client.get("/v1/memories/then/messages"))["data"] == said[:4]
    assert client.post("/v1/memories/past/fork", json={"id": "never", "before": "x"}).status_code == 404


def test_a_snapshot_forgets_too(client, served):
    chat = talk(client, "snap", "Anna likes teal.", "Bob lives in Oslo.")
    ok(client.post("/v1/memories/snap/snapshots", json={"name": "later"}))
    talk(client, "snap", "Hello there")
    first = ok(client.get("/v1/memories/snap/messages"))["data"][0]
    ok(client.delete(f"/v1/memories/snap/messages/{first['id']}"))
    ok(client.post("/v1/memories/snap/rollback", json={"name": "later"}))
    for turn in ([chat[1]], chat[1:]):
        ok(client.post("/v1/memories/snap-never/messages", json={"messages": turn}))
    assert same(state(served, "snap"), state(served, "snap-never"))


def test_export_and_import(client, served):
    talk(client, "out", "Anna likes teal.", "Bob lives in Oslo.")
    ok(client.post("/v1/memories/out/snapshots", json={"name": "now"}))
    data = client.get("/v1/memories/out/export").content
    ok(client.post("/v1/memories/in/import", content=data))
    assert same(state(served, "in"), state(served, "out"), 0)
    assert ok(client.get("/v1/memories/in/messages")) == ok(client.get("/v1/memories/out/messages"))
    assert [one["name"] for one in ok(client.get("/v1/memories/in"))["snapshots"]] == ["now"]
    entry = ok(client.get("/v1/memories/in/messages"))["data"][0]
    ok(client.delete(f"/v1/memories/in/messages/{entry['id']}"))  # the journal goes on working
    assert client.post("/v1/memories/in/import", content=data).status_code == 409
    for broken in (b"", b"x" * 100, data[:-1], data.replace(b'\\"turn\\": 2', b'\\"turn\\": 9')):
        assert client.post("/v1/memories/broken/import", content=broken).status_code == 400
    assert client.get("/v1/memories/broken").status_code == 404


def test_a_memory_moves_to_another_adapter(client, served, tmp_path):
    chat = talk(client, "move", "Anna likes teal.", "Bob lives in Oslo.")
    data = client.get("/v1/memories/move/export").content
    from tiny_chat import chat_model

    with serving(tmp_path / "other.db", model=chat_model(spread=0.5, r=2), journal=True) as other, other.client() as moved:
        assert moved.post("/v1/memories/move/import", content=data).status_code == 400
        from deltamem.serve.transfer import imported

        other.memories.store.put(imported(data, Key(LOCAL, "move")))
        refused = moved.get("/v1/memories/move")
        assert refused.status_code == 400
        ok(moved.post("/v1/memories/move/replay"))
        for turn in (chat[:2], chat):
            ok(moved.post("/v1/memories/told/messages", json={"messages": turn}))
        assert same(state(other, "move"), state(other, "told"))


def test_what_each_word_wrote(client):
    talk(client, "words", "Anna likes teal.", "Bob lives in Oslo.")
    messages = ok(client.get("/v1/memories/words/messages"))["data"]
    writes = ok(client.get("/v1/memories/words/writes"))["data"]
    assert [one["id"] for one in writes] == [one["id"] for one in messages]
    assert all(word["change"] > 0 for one in writes for word in one["words"])
    assert writes[-1]["left"] == pytest.approx(1)
    assert 0 < writes[0]["left"] < 1


def test_without_a_journal_no_words_are_kept(tmp_path):
    with serving(tmp_path / "memories.db") as served, served.client() as client:
        talk(client, "quiet", "Anna likes teal.", "Bob lives in Oslo.")
        assert ok(client.get("/v1/memories/quiet/messages"))["data"] == []
        assert ok(client.get("/v1/memories/quiet"))["turn"] == 2
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"teal" not in data
    assert b"quiet" in data


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_turn(served, stream, monkeypatch):
    step = JoinedRows.step
    monkeypatch.setattr(JoinedRows, "step", lambda self, tokens: (time.sleep(0.02), step(self, tokens))[1])
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 220, "stream": stream}
    sampling = {"temperature": 1, "seed": 1, "memory": {"id": "left"}}
    with served.client() as leaving:
        with pytest.raises(httpx.ReadTimeout):
            leaving.post("/v1/chat/completions", json={**body, **sampling}, timeout=0.05)
    end = time.monotonic() + 20
    while served.memories.engine.running and time.monotonic() < end:
        time.sleep(0.05)
    assert not served.memories.engine.running
    with served.client() as client:
        assert ok(client.get("/v1/memories/left"))["tokens"] == 0


def test_a_restart_changes_nothing(tmp_path):
    with serving(tmp_path / "memories.db") as served, served.client() as client:
        chat = talk(client, "stays", "Anna likes teal.")
    with serving(tmp_path / "memories.db") as served, served.client() as client:
        body = {**GREEDY, "messages": [*chat, {"role": "user", "content": "Hello"}], "memory": {"id": "stays"}}
        ok(client.post("/v1/chat/completions", json=body))
        again = state(served, "stays")
        talk(client, "whole", "Anna likes teal.", "Hello")
        assert same(again, state(served, "whole"))

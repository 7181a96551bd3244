"""After forgetting messages, a memory is the one that never heard them."""

from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_states import same_state
from tiny_chat import WORDS

from deltamem import DeltaMemState
from deltamem.store import Key

WORD = st.sampled_from([word for word in WORDS if word.isalnum()])
# A turn: how many of the chat's oldest messages its client has dropped (None begins a new chat), and its new texts.
TURN = st.tuples(st.none() | st.integers(0, 2), st.lists(st.lists(WORD, max_size=8), min_size=1, max_size=3))


def chats(turns):
    """The chat that the client sends in each turn, and the new messages in it. No two messages are the same."""
    chat, number = [], 0
    for dropped, texts in turns:
        chat = [] if dropped is None else chat[dropped:]
        new = []
        for words in texts:
            number += 1
            role = "assistant" if (len(chat) + len(new)) % 2 else "user"
            new.append({"role": role, "content": " ".join([*words, f"number{number}"])})
        chat = [*chat, *new]
        yield chat, new


def state(served, name):
    return DeltaMemState.from_bytes(served.memories.store.load(Key("local", name)).state)


def delete(client, *names):
    for name in names:
        client.delete(f"/v1/memories/{name}")


@settings(examples(2), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(TURN, min_size=1, max_size=12), data=st.data())
def test_what_is_forgotten_was_never_heard(served, turns, data):
    with served.client() as client:
        delete(client, "told", "never")
        for chat, _ in chats(turns):
            assert client.post("/v1/memories/told/messages", json={"messages": chat}).is_success
        entries = client.get("/v1/memories/told/messages").json()["data"]
        assert [entry["content"] for entry in entries] == [one["content"] for _, new in chats(turns) for one in new]
        forgotten = data.draw(st.lists(st.sampled_from(entries), min_size=1, unique_by=lambda entry: entry["id"]))
        at_once = data.draw(st.booleans())
        ids = [entry["id"] for entry in forgotten]
        for group in [ids] if at_once else [[id_] for id_ in ids]:
            assert client.post("/v1/memories/told/forget", json={"messages": group}).is_success
        texts = {entry["content"] for entry in forgotten}
        assert client.post("/v1/memories", json={"id": "never"}).is_success
        for chat, new in chats(turns):
            if any(message["content"] not in texts for message in new):
                rest = [message for message in chat if message["content"] not in texts]
                assert client.post("/v1/memories/never/messages", json={"messages": rest}).is_success
        assert same_state(state(served, "told"), state(served, "never"))
        left = client.get("/v1/memories/told/messages").json()["data"]
        assert [entry["content"] for entry in left] == [
            entry["content"] for entry in client.get("/v1/memories/never/messages").json()["data"]
        ]


def test_a_memory_that_forgot_nothing_differs(served):
    with served.client() as client:
        delete(client, "told", "never")
        messages = [{"role": "user", "content": "Anna likes teal."}, {"role": "assistant", "content": "Noted."}]
        assert client.post("/v1/memories/told/messages", json={"messages": messages}).is_success
        assert client.post("/v1/memories/never/messages", json={"messages": messages[1:]}).is_success
        assert not same_state(state(served, "told"), state(served, "never"))

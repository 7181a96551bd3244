"""OpenAI's official client talks to the server."""

import asyncio

import openai
import pytest

HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_completion(client):
    done = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=6)
    assert done.choices[0].message.content
    assert done.choices[0].finish_reason in ("stop", "length")
    assert 0 < done.usage.completion_tokens <= 6
    assert done.usage.prompt_tokens + done.usage.completion_tokens == done.usage.total_tokens


def test_a_stream_says_the_same(client):
    whole = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=6)
    options = {"include_usage": True}
    chunks = [
        *client.chat.completions.create(
            model="tiny", messages=HELLO, temperature=0, max_tokens=6, stream=True, stream_options=options
        )
    ]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_an_async_client_with_many_requests(served):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            asked = (
                client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=6, user=f"user{number}")
                for number in range(12)
            )
            return [done.choices[0].message.content for done in await asyncio.gather(*asked)]

    texts = asyncio.run(ask())
    assert len({*texts}) == 1
    assert texts[0]


def test_choices_and_logprobs(client):
    done = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=1, seed=3, n=3, max_tokens=6, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in done.choices}) > 1
    token = done.choices[0].logprobs.content[0]
    assert token.logprob <= token.top_logprobs[0].logprob <= 0
    again = client.chat.completions.create(model="tiny", messages=HELLO, temperature=1, seed=3, max_tokens=6)
    assert again.choices[0].message.content == done.choices[0].message.content
    streamed = {}
    for chunk in client.chat.completions.create(model="tiny", messages=HELLO, seed=3, n=3, max_tokens=6, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert streamed == {choice.index: choice.message.content for choice in done.choices}


def test_a_stop_text(client):
    whole = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=8).choices[0].message.content
    stop = whole.split()[2]
    done = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=8, stop=[stop]).choices[0]
    assert done.message.content == whole[: whole.index(stop)].strip()
    assert done.finish_reason == "stop"


def test_responses(client):
    done = client.responses.create(model="tiny", input="Hello there", temperature=0, max_output_tokens=6)
    same = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=6)
    assert done.output_text == same.choices[0].message.content
    events = [*client.responses.create(model="tiny", input=HELLO, temperature=0, max_output_tokens=6, stream=True)]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == done.output_text
    assert events[-1].response.output_text == done.output_text
    assert [event.sequence_number for event in events] == [*range(len(events))]


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ({"model": "other"}, 404, "there is no model 'other'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "a <|im_end|> b"}]}, 400, "special token"),
        ({"messages": [{"role": "user", "content": "Hello " * 300}]}, 400, "the model's context is 256"),
        ({"max_tokens": 1000}, 400, "the model's context is 256"),
        ({"temperature": 3}, 400, "temperature"),
        ({"user": "no/such name"}, 400, "is not accepted; give 1 to 64"),
        ({"frequency_penalty": 1}, 400, "frequency_penalty is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, 400, "tools is not supported"),
    ],
)
def test_a_refusal_has_openais_form(client, given, status, said):
    request = {"model": "tiny", "messages": HELLO, "max_tokens": 4, **given}
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match=None) as refused:
            client.chat.completions.create(**request, stream=stream)
        assert refused.value.status_code == status
        assert said in refused.value.body["message"]
        assert refused.value.body["type"] in ("invalid_request_error", "not_found_error")


def test_a_client_that_sends_the_whole_chat_has_every_message_written_once(client, served):
    chat = []
    for text in ("Anna likes teal.", "Bob lives in Oslo.", "What does Anna like ?"):
        chat.append({"role": "user", "content": text})
        done = client.chat.completions.create(model="tiny", messages=chat, temperature=0, max_tokens=6, user="whole")
        chat.append({"role": "assistant", "content": done.choices[0].message.content})
    with served.client() as plain:
        entries = plain.get("/v1/memories/whole/messages").json()["data"]
    assert [(entry["role"], entry["content"]) for entry in entries] == [(one["role"], one["content"]) for one in chat]
    shorter = [*chat[-2:], {"role": "user", "content": "Hello"}]  # a client that drops what is old
    client.chat.completions.create(model="tiny", messages=shorter, temperature=0, max_tokens=6, user="whole")
    with served.client() as plain:
        assert len(plain.get("/v1/memories/whole/messages").json()["data"]) == len(chat) + 2


def test_a_body_whose_size_is_not_declared_is_counted(served):
    with served.client() as plain:
        refused = plain.post("/v1/chat/completions", content=(b" " * 2**20 for _ in range(2)))
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "too_large"

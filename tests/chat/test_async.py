"""A session in coroutines."""

import asyncio

import pytest
from tiny_chat import chat_model, chat_tokenizer

from deltamem import ChatSession

SHORT = {"max_new_tokens": 6, "do_sample": False}


def session():
    return ChatSession(chat_model(spread=0.5), chat_tokenizer())


async def pieces(stream):
    return [piece async for piece in stream]


def test_it_answers_as_without():
    plain, chat = session(), session()
    texts = ("Anna likes teal.", "What does Anna like ?")

    async def talk():
        first = await chat.areply(texts[0], **SHORT)
        return first, "".join(await pieces(chat.astream(texts[1], **SHORT)))

    said = asyncio.run(talk())
    assert said == (plain.reply(texts[0], **SHORT), "".join(plain.stream(texts[1], **SHORT)))
    assert chat.messages == plain.messages
    assert chat.memory.tokens == plain.memory.tokens


def test_others_run_meanwhile():
    chats = [session() for _ in range(4)]

    async def talk():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        said = await asyncio.gather(*(chat.areply("Anna likes teal.", **SHORT) for chat in chats))
        ticking.cancel()
        return said, ticks

    said, ticks = asyncio.run(talk())
    assert len({*said}) == 1
    assert ticks > 1


@pytest.mark.parametrize("streaming", [True, False])
def test_a_cancelled_turn_leaves_the_session_as_it_was(streaming):
    chat = session()
    before = chat.memory.clone()

    async def talk():
        long = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": None}
        answer = pieces(chat.astream("Hello", **long)) if streaming else chat.areply("Hello", **long)
        task = asyncio.create_task(answer)
        await asyncio.sleep(0.05)
        with pytest.raises(RuntimeError, match="in use"):
            await chat.areply("Hello", **SHORT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await chat.areply("Hello", **SHORT)

    said = asyncio.run(talk())
    assert chat.messages[-1]["content"] == said
    assert len(chat.messages) == 2
    assert before.tokens == [0]


def test_an_error_arrives():
    chat = session()

    async def talk():
        with pytest.raises(ValueError, match="attention_mask is not accepted"):
            await pieces(chat.astream("Hello", attention_mask=1))
        with pytest.raises(ValueError, match="attention_mask is not accepted"):
            await chat.areply("Hello", attention_mask=1)

    asyncio.run(talk())
    assert chat.messages == []

"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from deltamem.serve.api.events import event, streamed
from deltamem.serve.api.schemas import Messages, Text, TextRequest
from deltamem.serve.api.service import Service, while_connected
from deltamem.serve.turn import Finished, Piece, Sampling, TokenChoice

# Options without an effect here, and their values that ask for none.
UNSUPPORTED = {
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "response_format": {"type": "text"},
    "logit_bias": {},
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
}


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ChatCompletionRequest(TextRequest):
    """The body of a request."""

    model_config = ConfigDict(extra="allow")

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: StreamOptions | None = None

    def sampling(self, choice: int) -> Sampling:
        """How a choice is sampled; each has its own seed."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.chosen_temperature,
            top_p=self.chosen_top_p,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            stop=tuple(text for text in stop if text),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


def chat_completions(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create(request: Request, body: ChatCompletionRequest) -> Any:
        tenant = service.admitted(request, body, UNSUPPORTED)
        completion = _Completion(service, body, tenant, request)
        if body.stream:
            return await streamed(completion.chunks())
        return await while_connected(request, completion.whole())

    return router


class _Completion:
    """One completion, of one or more choices. The first choice is written, and all read the memory before the turn."""

    def __init__(self, service: Service, body: ChatCompletionRequest, tenant: str, request: Request) -> None:
        self._service, self._body = service, body
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.model}
        messages, key = [message.message() for message in body.messages], body.key(tenant, request)
        write = body.write(service.write)
        self._answers = [
            service.answer(tenant, key, messages, write if choice == 0 else False, body.sampling(choice))
            for choice in range(body.n or 1)
        ]

    async def whole(self) -> dict[str, Any]:
        """The completion in one piece."""
        choices = await asyncio.gather(*(self._choice(index) for index in range(len(self._answers))))
        ends = [end for end, _ in choices]
        found = [
            {
                "index": index,
                "message": {"role": "assistant", "content": end.text, "refusal": None},
                "logprobs": self._logprobs(tokens),
                "finish_reason": end.reason,
            }
            for index, (end, tokens) in enumerate(choices)
        ]
        return {**self._common, "object": "chat.completion", "choices": found, "usage": _usage(ends)}

    async def chunks(self) -> AsyncIterator[str]:
        """The completion as server-sent events."""
        ends = []
        async for index, found in _merged(self._answers):
            if isinstance(found, Piece):
                delta = {"role": "assistant", "content": found.text}
                yield self._chunk(index, delta, None, self._logprobs(found.tokens))
            else:
                ends.append(found)
                yield self._chunk(index, {}, found.reason)
        if self._body.stream_options is not None and self._body.stream_options.include_usage:
            yield event({**self._common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(ends)})
        yield "data: [DONE]\n\n"

    async def _choice(self, index: int) -> tuple[Finished, list[TokenChoice]]:
        tokens: list[TokenChoice] = []
        async for found in self._answers[index]:
            if isinstance(found, Finished):
                return found, tokens
            tokens += found.tokens
        raise RuntimeError("the turn has no end")

    def _chunk(self, index: int, delta: dict[str, str], reason: str | None, logprobs: Any = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**self._common, "object": "chat.completion.chunk", "choices": [choice]})

    def _logprobs(self, tokens: list[TokenChoice] | tuple[TokenChoice, ...]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        decode = self._service.memories.engine.tokenizer.decode

        def described(token: int, logprob: float | None) -> dict[str, Any]:
            text = decode([token])
            return {"token": text, "logprob": logprob, "bytes": [*text.encode()]}

        content = [
            {**described(choice.token, choice.logprob), "top_logprobs": [described(*top) for top in choice.top]}
            for choice in tokens
        ]
        return {"content": content, "refusal": None}


async def _merged(answers: list[AsyncIterator[Piece | Finished]]) -> AsyncIterator[tuple[int, Piece | Finished]]:
    """The events of several answers, as they come, with the answers' indices."""
    pending = {asyncio.ensure_future(anext(answer)): index for index, answer in enumerate(answers)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, found = pending.pop(task), task.result()
                if isinstance(found, Piece):
                    pending[asyncio.ensure_future(anext(answers[index]))] = index
                yield index, found
    finally:
        for task in pending:
            task.cancel()


def _usage(ends: list[Finished]) -> dict[str, int]:
    prompt, answer = ends[0].prompt_tokens, sum(end.completion_tokens for end in ends)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

"""POST /v1/responses, as far as clients need it for chats; responses are not stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from deltamem.chat.tokens import Message
from deltamem.serve.api.events import event, streamed
from deltamem.serve.api.schemas import Messages, Text, TextRequest
from deltamem.serve.api.service import Service, while_connected
from deltamem.serve.turn import Finished, Piece, Sampling

UNSUPPORTED: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "previous_response_id": None,
    "conversation": None,
    "background": False,
    "text": {"format": {"type": "text"}},
    "reasoning": None,
    "prompt": None,
    "top_logprobs": 0,
}


class ResponseRequest(TextRequest):
    """The body of a request."""

    model_config = ConfigDict(extra="allow")

    input: Text | Messages
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None

    def messages(self) -> list[Message]:
        """The chat."""
        given: list[Message] = []
        if isinstance(self.input, str):
            given.append({"role": "user", "content": self.input})
        else:
            given += [message.message() for message in self.input]
        return given if self.instructions is None else [{"role": "system", "content": self.instructions}, *given]

    def sampling(self) -> Sampling:
        """How the answer is sampled."""
        return Sampling(max_tokens=self.max_output_tokens, temperature=self.chosen_temperature, top_p=self.chosen_top_p)


def responses(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/responses")
    async def create(request: Request, body: ResponseRequest) -> Any:
        tenant = service.admitted(request, body, UNSUPPORTED)
        events = service.answer(tenant, body.key(tenant, request), body.messages(), body.write(service.write), body.sampling())
        response = _Response(service.model, body)
        if body.stream:
            return await streamed(response.events(events))
        return await while_connected(request, response.whole(events))

    return router


class _Response:
    """A response object, and the events that build it."""

    def __init__(self, model: str, body: ResponseRequest) -> None:
        self._model, self._body = model, body
        self._id, self._item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._number = -1

    async def whole(self, events: AsyncIterator[Piece | Finished]) -> dict[str, Any]:
        """The response in one piece."""
        async for found in events:
            if isinstance(found, Finished):
                return self.completed(found)
        raise RuntimeError("the turn has no end")

    def completed(self, end: Finished) -> dict[str, Any]:
        """The response with its answer."""
        whole = end.reason == "stop"
        usage = {
            "input_tokens": end.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": end.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": end.prompt_tokens + end.completion_tokens,
        }
        details = None if whole else {"reason": "max_output_tokens"}
        return self._object("completed" if whole else "incomplete", [self._message(end)], usage, details)

    async def events(self, events: AsyncIterator[Piece | Finished]) -> AsyncIterator[str]:
        """The response as server-sent events."""
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        begun = False
        async for found in events:
            if not begun:
                begun = True
                item = {"id": self._item, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
                yield self._event("response.created", response=self._object("in_progress", [], None))
                yield self._event("response.in_progress", response=self._object("in_progress", [], None))
                yield self._event("response.output_item.added", output_index=0, item=item)
                yield self._event("response.content_part.added", **place, part=_text(""))
            if isinstance(found, Piece):
                yield self._event("response.output_text.delta", **place, delta=found.text, logprobs=[])
                continue
            yield self._event("response.output_text.done", **place, text=found.text, logprobs=[])
            yield self._event("response.content_part.done", **place, part=_text(found.text))
            yield self._event("response.output_item.done", output_index=0, item=self._message(found))
            response = self.completed(found)
            yield self._event(f"response.{response['status']}", response=response)

    def _event(self, name: str, **data: Any) -> str:
        self._number += 1
        return event({"type": name, "sequence_number": self._number, **data}, name)

    def _message(self, end: Finished) -> dict[str, Any]:
        status = "completed" if end.reason == "stop" else "incomplete"
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": [_text(end.text)]}

    def _object(self, status: str, output: list[Any], usage: Any, incomplete: Any = None) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": self._model,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": body.chosen_temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": body.chosen_top_p,
            "usage": usage,
        }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}

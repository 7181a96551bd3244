"""Service: what the endpoints need of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from deltamem.chat.tokens import Message, system_prompt, with_system
from deltamem.serve.api.access import Access
from deltamem.serve.api.errors import ApiError
from deltamem.serve.api.metrics import Metrics
from deltamem.serve.api.schemas import TextRequest, check_no_special_tokens, refuse_unsupported
from deltamem.serve.memories import ServedMemories, TurnOptions
from deltamem.serve.turn import Finished, Piece, Sampling, Write
from deltamem.store import Key

# Seconds between two looks at whether a client is still there.
LOOK = 0.5
Result = TypeVar("Result")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await something for a request, and cancel it when the client leaves.

    Raises:
        ApiError: the client has left.
    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=LOOK))[0]:
            if await request.is_disconnected():
                raise ApiError(499, "the client left before the answer was complete", "cancelled")
    finally:
        task.cancel()
    return await task


@dataclass(frozen=True)
class Service:
    """The parts of a server.

    Args:
        memories: the memories and the engine.
        access: who may use them.
        metrics: counts what happens.
        model: the name of the model.
        system: the system prompt of chats without one; None for the chat template's default.
        write: whether turns are written that do not say so.
        seconds: how long a turn may take.
    """

    memories: ServedMemories
    access: Access
    metrics: Metrics
    model: str
    system: str | None
    write: Write
    seconds: float

    def admitted(self, request: Request, body: TextRequest, unsupported: Mapping[str, Any]) -> str:
        """The tenant of a request for an answer, if the server can answer it.

        Args:
            request: the request.
            body: its body.
            unsupported: see `refuse_unsupported`.

        Raises:
            ApiError: it has no accepted key, names another model, or has an option that is not supported.
        """
        tenant, name = self.access.tenant(request), body.model
        if name != self.model:
            raise ApiError(404, f"there is no model {name!r:.80}; this server has {self.model!r}", "model_not_found", "model")
        refuse_unsupported(body, unsupported)
        return tenant

    def deadline(self) -> float:
        """When a turn that begins now must be over."""
        return time.monotonic() + self.seconds

    async def answer(
        self, tenant: str, key: Key | None, messages: Sequence[Message], write: Write, sampling: Sampling
    ) -> AsyncIterator[Piece | Finished]:
        """The events of a turn."""
        chat = [*messages] if system_prompt(messages) else with_system(self.system, messages)
        check_no_special_tokens(self.memories.engine.tokenizer, chat)
        options = TurnOptions(tenant, write, sampling, self.deadline())
        answer = self.memories.ask(key, chat, options)
        async for event in self.metrics.timed(answer.pieces()):
            yield event

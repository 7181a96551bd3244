"""/v1/memories: what can be done with a memory apart from talking to it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from deltamem.chat.tokens import Message
from deltamem.serve.api.schemas import Messages, check_no_special_tokens
from deltamem.serve.api.service import Service
from deltamem.serve.inspect import norms, writes
from deltamem.serve.memories import messages_of
from deltamem.serve.replay import forget, fork_before, move
from deltamem.serve.transfer import exported, imported
from deltamem.store import Key, SnapshotSummary, Summary


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewMemoryRequest(_Body):
    """Makes an empty memory."""

    id: str
    journal: bool | None = None
    ttl: Annotated[float, Field(gt=0, le=1e10)] | None = None


class TellRequest(_Body):
    """Writes messages without an answer."""

    messages: Messages


class ForgetRequest(_Body):
    """Forgets messages of the journal."""

    messages: Annotated[list[str], Field(min_length=1, max_length=1000)]


class SnapshotRequest(_Body):
    """Keeps the memory as it is under a name, or goes back to it."""

    name: str


class ForkRequest(_Body):
    """Copies the memory, as it is or as it was before a message was said."""

    id: str
    before: str | None = None


def memories(service: Service) -> APIRouter:
    """The endpoints."""
    router = APIRouter(prefix="/v1/memories")
    served, store = service.memories, service.memories.store

    def key(request: Request, memory: str) -> Key:
        return Key(service.access.tenant(request), memory)

    @router.get("")
    async def index(request: Request, after: str = "", limit: Annotated[int, Field(ge=1, le=1000)] = 100) -> Any:
        tenant = service.access.tenant(request)
        found = await asyncio.to_thread(store.names, tenant, after, limit + 1)
        return {"object": "list", "data": [*map(_described, found[:limit])], "has_more": len(found) > limit}

    @router.post("", status_code=201)
    async def create(request: Request, body: NewMemoryRequest) -> Any:
        name = key(request, body.id)
        async with served.claims.claimed(name):
            return _described(await served.create(name, body.journal, body.ttl))

    @router.get("/{memory}")
    async def show(request: Request, memory: str) -> Any:
        kept = await served.load(key(request, memory))
        snapshots = await asyncio.to_thread(store.snapshots, kept.key)
        state = await asyncio.to_thread(served.opened, kept.state)
        return {**_described(kept), "bytes": state.nbytes, "norms": norms(state), "snapshots": [*map(asdict, snapshots)]}

    @router.delete("/{memory}")
    async def delete(request: Request, memory: str) -> Any:
        name = key(request, memory)
        async with served.claims.claimed(name):
            await asyncio.to_thread(store.delete, name)
        return {"id": memory, "object": "memory", "deleted": True}

    @router.get("/{memory}/messages")
    async def messages(request: Request, memory: str) -> Any:
        entries = await asyncio.to_thread(store.entries, key(request, memory))
        return {"object": "list", "data": [asdict(entry) for entry in entries]}

    @router.post("/{memory}/messages")
    async def tell(request: Request, memory: str, body: TellRequest) -> Any:
        told: list[Message] = [message.message() for message in body.messages]
        check_no_special_tokens(served.engine.tokenizer, told)
        name = key(request, memory)
        end = await served.tell(name, told, service.deadline())
        return {**_described(await served.load(name)), "written": end.written}

    @router.delete("/{memory}/messages/{message}")
    async def forget_one(request: Request, memory: str, message: str) -> Any:
        return _described(await forget(served, key(request, memory), [message]))

    @router.post("/{memory}/forget")
    async def forget_several(request: Request, memory: str, body: ForgetRequest) -> Any:
        return _described(await forget(served, key(request, memory), body.messages))

    @router.get("/{memory}/writes")
    async def show_writes(request: Request, memory: str) -> Any:
        entries = await asyncio.to_thread(store.entries, key(request, memory))
        return {"object": "list", "data": await asyncio.to_thread(writes, served.engine, entries)}

    @router.post("/{memory}/snapshots", status_code=201)
    async def snapshot(request: Request, memory: str, body: SnapshotRequest) -> Any:
        name = key(request, memory)
        async with served.claims.claimed(name):
            kept = await served.load(name)
            taken = await asyncio.to_thread(store.snapshot, name, body.name, kept.version)
        return asdict(SnapshotSummary(taken.name, taken.created, taken.turn, taken.tokens))

    @router.post("/{memory}/rollback")
    async def rollback(request: Request, memory: str, body: SnapshotRequest) -> Any:
        name = key(request, memory)
        async with served.claims.claimed(name):
            kept = await served.load(name)
            return _described(await asyncio.to_thread(store.rollback, name, body.name, kept.version))

    @router.post("/{memory}/fork", status_code=201)
    async def fork(request: Request, memory: str, body: ForkRequest) -> Any:
        name = key(request, memory)
        to = Key(name.tenant, body.id)
        if body.before is not None:
            return _described(await fork_before(served, name, body.before, to))
        async with served.claims.claimed(*{name, to}):
            return _described(await asyncio.to_thread(store.fork, name, to))

    @router.post("/{memory}/replay")
    async def replay(request: Request, memory: str) -> Any:
        return _described(await move(served, key(request, memory)))

    @router.get("/{memory}/export")
    async def export(request: Request, memory: str) -> Response:
        contents = await asyncio.to_thread(store.contents, key(request, memory))
        data = await asyncio.to_thread(exported, contents)
        return Response(data, media_type="application/octet-stream")

    @router.post("/{memory}/import", status_code=201)
    async def import_(request: Request, memory: str) -> Any:
        name = key(request, memory)
        contents = await asyncio.to_thread(imported, await request.body(), name)
        check_no_special_tokens(served.engine.tokenizer, messages_of(contents.entries))
        await asyncio.to_thread(served.opened, contents.memory.state)  # refuses another adapter's
        async with served.claims.claimed(name):
            return _described(await asyncio.to_thread(store.put, contents))

    return router


def _described(memory: Summary) -> dict[str, Any]:
    """A memory without its contents, and without its tenant."""
    names = ("version", "created", "updated", "expires", "tokens", "turn", "journal")
    return {"id": memory.key.memory, "object": "memory", **{name: getattr(memory, name) for name in names}}

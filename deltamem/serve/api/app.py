"""The application: every endpoint, the page, and what surrounds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from deltamem.html.page import render
from deltamem.serve.api.chat_completions import chat_completions
from deltamem.serve.api.errors import add_error_handlers
from deltamem.serve.api.guard import Guard
from deltamem.serve.api.memories import memories
from deltamem.serve.api.metrics import Counting
from deltamem.serve.api.responses import responses
from deltamem.serve.api.service import Service
from deltamem.store import Unavailable

# The page runs its own script alone, talks to this server alone, and stands in no other page.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
)
# Seconds between two deletions of memories that have expired.
EXPIRY = 60


def make_app(service: Service, only_loopback: bool) -> FastAPI:
    """Make the application.

    Args:
        service: what the endpoints need.
        only_loopback: whether requests must name this machine; see `Guard`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        expiring = asyncio.create_task(_expire(service))
        yield
        expiring.cancel()

    app = FastAPI(title="deltamem", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, only_loopback=only_loopback)
    add_error_handlers(app)

    app.add_middleware(Counting, metrics=service.metrics)

    for router in (chat_completions, responses, memories):
        app.include_router(router(service))

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        service.access.tenant(request)
        return {"object": "list", "data": [{"id": service.model, "object": "model", "created": 0, "owned_by": "deltamem"}]}

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.access.tenant(request)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    page = render("deltamem.serve", service.model, {}, [])

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    return app


async def _expire(service: Service) -> None:
    while True:
        with suppress(Unavailable):  # when the database is back, the next round does it
            await asyncio.to_thread(service.memories.store.expire)
        await asyncio.sleep(EXPIRY)

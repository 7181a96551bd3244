"""Metrics for Prometheus."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltamem.serve.turn import Finished, Piece
from deltamem.serve.turn_runner import TurnRunner

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What the server counts; no label names a user or a tenant."""

    def __init__(self, engine: TurnRunner) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("deltamem_requests", "Requests.", ["method", "route", "status"], registry=self._registry)
        self._prompt = Counter("deltamem_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self._answers = Counter("deltamem_completion_tokens", "Tokens of answers.", registry=self._registry)
        self._written = Counter("deltamem_written_tokens", "Tokens written to memories.", registry=self._registry)
        first, between = "Seconds to the first piece.", "Seconds between two pieces."
        self._first = Histogram("deltamem_first_piece_seconds", first, registry=self._registry, buckets=SECONDS)
        self._between = Histogram("deltamem_between_pieces_seconds", between, registry=self._registry, buckets=SECONDS)
        Gauge("deltamem_running_turns", "Turns that run.", registry=self._registry).set_function(lambda: engine.running)
        Gauge("deltamem_waiting_turns", "Turns that wait.", registry=self._registry).set_function(lambda: engine.waiting)

    def request(self, method: str, route: str, status: int) -> None:
        """Count a request; methods that a client made up are one, because every label is kept for ever."""
        self._requests.labels(method if method in METHODS else "other", route, status).inc()

    async def timed(self, events: AsyncIterator[Piece | Finished]) -> AsyncIterator[Piece | Finished]:
        """Pass on the events of a turn, and measure them."""
        before, seconds = time.perf_counter(), self._first
        async for event in events:
            if isinstance(event, Finished):
                self._prompt.inc(event.prompt_tokens)
                self._answers.inc(event.completion_tokens)
                self._written.inc(event.written)
            else:
                now = time.perf_counter()
                seconds.observe(now - before)
                before, seconds = now, self._between
            yield event

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self._registry)


class Counting:
    """ASGI middleware that counts requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, and count it when its response begins."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.request(scope["method"], route, message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)

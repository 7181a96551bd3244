"""Guard: refuses requests that are too large, or that a foreign web page makes in a user's browser."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltamem.serve.api.errors import ApiError, error_body

# Bytes of a body: of a request, and of an imported memory.
BODY, IMPORT = 2**20, 2**26
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """ASGI middleware that checks what needs no parsing.

    Args:
        app: the application.
        only_loopback: whether requests must name this machine. Without keys they must: otherwise a page of another host could
            reach the server under a name that points here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, only_loopback: bool) -> None:
        self._app, self._only_loopback = app, only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, limit = Headers(scope=scope), IMPORT if scope["path"].endswith("/import") else BODY
        error = self._refusal(headers, limit)
        if error is not None:
            await JSONResponse(error_body(error), error.status)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self._app(scope, counted, send)

    def _refusal(self, headers: Headers, limit: int) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._only_loopback and _name_in(f"//{host}") not in LOOPBACK:
            return ApiError(403, f"the host {host!r:.80} is not accepted; without keys, the server answers only to localhost")
        if origin is not None and origin.partition("://")[2] != host:
            return ApiError(403, f"a page of {origin!r:.80} may not use this server; open the server's own page")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            return _too_large(limit)
        return None


def _name_in(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # such as one square bracket
        return None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit:,} bytes; send less at once", "too_large")

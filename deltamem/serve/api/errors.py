"""Errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deltamem.serve.claims import InUseError
from deltamem.serve.turn import CancelledTurnError
from deltamem.serve.turn_queue import BusyError
from deltamem.serve.turn_tokens import TooLongError
from deltamem.store import Exists, NotFound, Stale, Unavailable


class ApiError(HTTPException):
    """A refusal. It is one of Starlette's own, because FastAPI replaces other errors of a body that is being read.

    Args:
        status: the HTTP status.
        message: what was given, what is accepted and what to do.
        code: OpenAI's short name of the error.
        param: the field of the request that it is about.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.code, self.param = status, message, code, param


# Status and code of the errors of other layers, the special before the general.
KNOWN: tuple[tuple[type[BaseException], int, str], ...] = (
    (TooLongError, 400, "context_length_exceeded"),
    (NotFound, 404, "not_found"),
    (Exists, 409, "already_exists"),
    (Stale, 409, "conflict"),
    (InUseError, 409, "in_use"),
    (BusyError, 429, "busy"),
    (CancelledTurnError, 504, "timeout"),
    (ValueError, 400, "invalid_value"),
)
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def as_api_error(error: BaseException) -> ApiError:
    """Any error as a refusal; one that is not expected does not tell what the server knows."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        # A field's name may be the client's: printable, and not too long.
        place = repr(".".join(str(part) for part in first["loc"] if part != "body"))[1:-1][:80]
        return ApiError(400, f"{place or 'the body'}: {first['msg']}", "invalid_value", place or None)
    if isinstance(error, HTTPException) and isinstance(error.__cause__, ApiError):  # while FastAPI read the body
        return error.__cause__
    if isinstance(error, Unavailable):  # its message has the database's address
        return ApiError(503, "the server's database does not answer; try again later", "store_unavailable")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    for kind, status, code in KNOWN:
        if isinstance(error, kind):
            return ApiError(status, str(error), code)
    return ApiError(500, "the server failed at this request; its log says why", "internal_error")


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of a refusal."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's form."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        known = as_api_error(error)
        headers = {"Retry-After": "1"} if known.status in (429, 503) else None
        return JSONResponse(error_body(known), known.status, headers)

    for kind in (ApiError, RequestValidationError, HTTPException, Exception, Unavailable, *(kind for kind, _, _ in KNOWN)):
        app.add_exception_handler(kind, refuse)

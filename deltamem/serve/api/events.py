"""Server-sent events, and errors in the middle of a stream."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from deltamem.serve.api.errors import as_api_error, error_body

logger = logging.getLogger(__name__)


def event(data: dict[str, Any], name: str | None = None) -> str:
    """One event."""
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n"


async def streamed(events: AsyncIterator[str]) -> StreamingResponse:
    """A response that sends events as they come. An error before the first one is an ordinary refusal."""
    first = await anext(events)

    async def rest() -> AsyncIterator[str]:
        yield first
        try:
            async for one in events:
                yield one
        except Exception as error:
            known = as_api_error(error)
            if known.status >= 500:
                logger.warning("a stream ended in an error", exc_info=True)
            yield event(error_body(known))

    return StreamingResponse(rest(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

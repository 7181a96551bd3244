"""A server with a tiny model, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from tiny_chat import chat_model, chat_tokenizer

from deltamem.serve.api.access import Access
from deltamem.serve.api.app import make_app
from deltamem.serve.api.metrics import Metrics
from deltamem.serve.api.service import Service
from deltamem.serve.engine import Engine
from deltamem.serve.memories import NewMemory, ServedMemories
from deltamem.store import Store

KEYS = {"anna": "anna-0123456789abcdef", "bob": "bob-0123456789abcdef"}


@dataclass
class Served:
    """A running server."""

    url: str
    memories: ServedMemories

    def client(self, tenant: str | None = None) -> httpx.Client:
        headers = {} if tenant is None else {"Authorization": f"Bearer {KEYS[tenant]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


@contextmanager
def serving(
    store: str | Path, *, keys: bool = False, model: Any = None, rows: int = 8, waiting: int = 64, **options: Any
) -> Iterator[Served]:
    """Serve until the end of the block."""
    model = chat_model(spread=0.5) if model is None else model
    engine = Engine(model, chat_tokenizer(), rows, waiting)
    memories = ServedMemories(engine, Store(store), NewMemory(options.pop("journal", False), options.pop("ttl", None)))
    digests = {sha256(key.encode()).digest(): tenant for tenant, key in KEYS.items()} if keys else None
    access = Access(digests, options.pop("rate", None))
    service = Service(
        memories, access, Metrics(engine), "tiny", **{"system": None, "write": "after", "seconds": 60.0, **options}
    )
    server = uvicorn.Server(uvicorn.Config(make_app(service, only_loopback=not keys), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", memories)
    finally:
        server.should_exit = True
        thread.join()
        engine.close()
        memories.store.close()

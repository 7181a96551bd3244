"""`deltamem serve`: loads a model with its adapter, and serves it."""

from __future__ import annotations

import ipaddress
import logging
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from deltamem.backbones import SHIPPED_SYSTEM, Placement, load_adapted, shipped_adapter
from deltamem.serve.api.access import Access, read_keys
from deltamem.serve.api.app import make_app
from deltamem.serve.api.metrics import Metrics
from deltamem.serve.api.service import Service
from deltamem.serve.engine import Engine
from deltamem.serve.memories import NewMemory, ServedMemories
from deltamem.serve.turn import Write
from deltamem.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The options of `deltamem serve`; the command's help describes them."""

    host: str
    port: int
    store: str
    keys: Path | None
    journal: bool
    ttl: float | None
    write: Write
    rows: int
    waiting: int
    rate: int | None
    seconds: float
    system: str | None
    name: str | None


def run(model: str | None, adapter: str | None, options: Options, placement: Placement) -> None:
    """Serve until the process is stopped.

    Args:
        model: the backbone, a folder or a name on the Hub; the adapter's backbone if None.
        adapter: the adapter, a folder or a name on the Hub; the shipped one if None.
        options: how to serve.
        placement: the backbone's device and dtype.

    Raises:
        ValueError, OSError: the model, the adapter or an option is not accepted; the message says why.
    """
    loopback = _is_loopback(options.host)
    if options.keys is None and not loopback:
        raise ValueError(
            f"host {options.host!r} is not accepted without keys: anybody could read every memory. Give --keys FILE, or serve "
            "this machine alone with --host 127.0.0.1"
        )
    keys = None if options.keys is None else read_keys(options.keys)
    place = socket.create_server((options.host, options.port))  # before the model is loaded: the port may be taken
    store = Store(options.store)
    system = SHIPPED_SYSTEM if adapter is None and options.system is None else options.system
    with shipped_adapter() if adapter is None else nullcontext(adapter) as folder:
        adapted, tokenizer = load_adapted(folder, model, placement)
    name = options.name or Path(adapted.get_base_model().name_or_path).name
    engine = Engine(adapted, tokenizer, options.rows, options.waiting)
    try:
        memories = ServedMemories(engine, store, NewMemory(options.journal, options.ttl))
        service = Service(memories, Access(keys, options.rate), Metrics(engine), name, system, options.write, options.seconds)
        logger.warning("serving %s on http://%s:%d", name, options.host, place.getsockname()[1])
        config = uvicorn.Config(make_app(service, only_loopback=keys is None), log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[place])
    finally:
        engine.close()
        store.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

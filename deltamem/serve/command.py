"""`deltamem serve`: loads a model with its adapter, and serves it."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from deltamem.backbones import Placement, load_adapted, shipped_adapter
from deltamem.serve.api.access import Access, read_keys
from deltamem.serve.api.app import make_app
from deltamem.serve.api.metrics import Metrics
from deltamem.serve.api.service import Service
from deltamem.serve.engine import Engine
from deltamem.serve.memories import NewMemory, ServedMemories
from deltamem.serve.turn import Write
from deltamem.serve.turn_runner import TurnRunner
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


# Makes an engine for so many rows and waiting turns; returns it with the name of its backbone.
Load = Callable[[int, int], tuple[TurnRunner, str]]


def load_engine(
    model: str | None, adapter: str | None, placement: Placement, rows: int, waiting: int
) -> tuple[TurnRunner, str]:
    """Load a model of transformers and its engine.

    Args:
        model: the backbone, a folder or a name on the Hub; the adapter's backbone if None.
        adapter: the adapter, a folder or a name on the Hub; the shipped one if None.
        placement: the backbone's device and dtype.
        rows: see `Engine`.
        waiting: see `Engine`.

    Raises:
        ValueError, OSError: the model or the adapter is not accepted; the message says why.
    """
    with shipped_adapter() if adapter is None else nullcontext(adapter) as folder:
        adapted, tokenizer = load_adapted(folder, model, placement)
    return Engine(adapted, tokenizer, rows, waiting), adapted.get_base_model().name_or_path


def run(load: Load, options: Options) -> None:
    """Serve until the process is stopped.

    Args:
        load: loads the engine.
        options: how to serve.

    Raises:
        ValueError, OSError: the engine or an option is not accepted; the message says why.
    """
    loopback = _is_loopback(options.host)
    if options.keys is None and not loopback:
        raise ValueError(
            f"host {options.host!r} is not accepted without keys: anybody could read every memory. Give --keys FILE, or serve "
            "this machine alone with --host 127.0.0.1"
        )
    # The port may be taken, so it is opened before the model is loaded.
    with socket.create_server((options.host, options.port)) as place, service(load, options) as made:
        logger.warning("serving %s on http://%s:%d", made.model, options.host, place.getsockname()[1])
        app = make_app(made, only_loopback=options.keys is None)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)).run(sockets=[place])


@contextmanager
def service(load: Load, options: Options) -> Iterator[Service]:
    """Load what a server needs; it is closed at the end of the block.

    Args:
        load, options: see `run`.

    Raises:
        ValueError, OSError: see `run`.
    """
    keys = None if options.keys is None else read_keys(options.keys)
    store = Store(options.store)
    engine, backbone = load(options.rows, options.waiting)
    name = options.name or Path(backbone).name
    try:
        memories = ServedMemories(engine, store, NewMemory(options.journal, options.ttl))
        yield Service(
            memories, Access(keys, options.rate), Metrics(engine), name, options.system, options.write, options.seconds
        )
    finally:
        engine.close()
        store.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""`deltamem serve`."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

if TYPE_CHECKING:
    from deltamem.serve.command import Load

from deltamem_cli.common import Adapter, Backbone, Device, Dtype, app, errors_in_words


@app.command()
def serve(
    model: Backbone = None,
    adapter: Adapter = None,
    host: Annotated[str, typer.Option(help="Address to listen at; other machines' only with --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    store: Annotated[
        str, typer.Option(metavar="URL", help="Database: a SQLite file, or postgresql://USER@HOST/NAME.")
    ] = "memories.db",
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys: 'TENANT KEY' on each line. Tenants do not see each other.")
    ] = None,
    journal: Annotated[bool, typer.Option("--journal", help="Keep the messages of new memories, to list and forget.")] = False,
    ttl: Annotated[
        float | None, typer.Option(min=1, help="Seconds after its last change at which a new memory is deleted.")
    ] = None,
    write: Annotated[
        str, typer.Option(help="When turns are written that do not say so: after the answer, during it, or never.")
    ] = "after",
    rows: Annotated[int, typer.Option(min=1, help="Most turns that run at once.")] = 32,
    waiting: Annotated[int, typer.Option(min=1, help="Most turns that wait; others are refused with 429.")] = 256,
    rate: Annotated[int | None, typer.Option(min=1, help="Most requests a minute and tenant.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Most seconds that a turn takes.")] = 120,
    system: Annotated[
        str | None, typer.Option(help="System prompt of chats without one. By default as in `deltamem chat`.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in requests. By default the backbone's.")] = None,
    engine: Annotated[str, typer.Option(help="What runs the model: transformers or vllm.")] = "transformers",
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Serve a model over OpenAI's interface, with memories.

    Every user has one: the field `user` of a request names it. The page at / shows it.
    """
    with errors_in_words():
        if write not in ("after", "during", "never"):
            raise ValueError(f"--write {write} is not accepted; choose after, during or never")
        _check_extras()
        from deltamem.serve.command import Options, run

        load = _loader(engine, model, adapter, dtype, device, write)
        chosen = cast("Literal['after', 'during', False]", False if write == "never" else write)
        run(load, Options(host, port, store, keys, journal, ttl, chosen, rows, waiting, rate, seconds, system, name))


def _loader(engine: str, model: str | None, adapter: str | None, dtype: str, device: str, write: str) -> Load:
    """What loads the engine.

    Raises:
        ValueError: there is no such engine, or an option is not accepted with it.
    """
    if engine == "transformers":
        from deltamem.backbones import Placement
        from deltamem.serve.command import load_engine

        return partial(load_engine, model, adapter, Placement(dtype, device))
    if engine != "vllm":
        raise ValueError(f"--engine {engine} is not accepted; choose transformers or vllm")
    if write == "during" or device != "cpu":
        given = "--write during" if write == "during" else f"--device {device}"
        raise ValueError(
            f"{given} is not accepted with --engine vllm, which writes after an answer and finds its device; leave it out"
        )
    if importlib.util.find_spec("vllm") is None:
        raise ValueError("--engine vllm needs vLLM in this environment; docs/vllm.md says how to install both")
    from deltamem.vllm.serving import load_engine as load_vllm_engine

    return partial(load_vllm_engine, model, adapter, dtype)


def _check_extras() -> None:
    packages = ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"deltamem serve needs {' and '.join(missing)}; run: pip install 'deltamem[serve]'")

"""Several replicas of `deltamem serve` under Ray Serve, on one PostgreSQL database.

    DELTAMEM_STORE=postgresql://USER@HOST/NAME DELTAMEM_KEYS=/PATH/TO/keys serve run ray_serve:app

Any replica can take any turn: the database has the memories, and says which replica works on one.
"""

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve

from deltamem.backbones import Placement
from deltamem.serve.api.app import make_app
from deltamem.serve.command import Options, load_engine, service


def options() -> Options:
    """The options of a replica. Ray's proxy listens, so that `host` and `port` have no effect."""
    return Options(
        host="",
        port=0,
        store=os.environ["DELTAMEM_STORE"],
        keys=Path(os.environ["DELTAMEM_KEYS"]),
        journal=True,
        ttl=None,
        write="after",
        rows=32,
        waiting=256,
        rate=None,
        seconds=120,
        system=None,
        name=None,
    )


@serve.deployment(num_replicas=2)
@serve.ingress()
class Replica:
    """One replica, with a model of its own."""

    def __init__(self) -> None:
        self._open = ExitStack()
        model, adapter = os.environ.get("DELTAMEM_MODEL"), os.environ.get("DELTAMEM_ADAPTER")
        self._service = self._open.enter_context(service(partial(load_engine, model, adapter, Placement()), options()))

    def __serve_build_asgi_app__(self) -> Any:
        """The application, for Ray."""
        return make_app(self._service, only_loopback=False)

    def __del__(self) -> None:
        self._open.close()


app = Replica.bind()

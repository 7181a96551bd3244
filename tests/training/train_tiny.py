"""`deltamem train` in two processes, several times: each argument is a list of its arguments, as JSON.

See test_processes.py.
"""

import json
import os
import socket
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.multiprocessing import start_processes

from deltamem.training import command


def shard_on_cpus() -> None:
    """Let accelerate (1.15) use FSDP on CPUs, too: it does so on accelerators only, and otherwise leaves it out, silently."""
    begin = AcceleratorState.__init__

    def begin_sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        if fsdp_plugin is not None:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)

    AcceleratorState.__init__ = begin_sharded


def train(rank: int, environment: dict[str, str], runs: list[str]) -> None:
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    shard_on_cpus()
    for arguments in runs:
        command.main(json.loads(arguments))


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    # Forked, so that torch and transformers are imported once. A fresh process has no threads that this would break.
    start_processes(train, args=(where, sys.argv[1:]), nprocs=2, start_method="fork")

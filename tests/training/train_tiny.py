"""`deltamem train` as one of several processes, several times: each argument is a list of its arguments, as JSON.

See test_processes.py.
"""

import json
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from deltamem.training import command


def shard_on_cpus() -> None:
    """Let accelerate (1.15) use FSDP on CPUs, too: it does so on accelerators only, and otherwise leaves it out, silently."""
    begin = AcceleratorState.__init__

    def begin_sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        if fsdp_plugin is not None:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)

    AcceleratorState.__init__ = begin_sharded


if __name__ == "__main__":
    shard_on_cpus()
    for arguments in sys.argv[1:]:
        command.main(json.loads(arguments))

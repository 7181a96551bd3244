"""A server in a process of its own, to be killed. A module of its own, for the process to import."""

import threading
from multiprocessing.connection import Connection

import torch
from served import serving

from deltamem.serve import claims


def serve(url: str, started: Connection) -> None:
    """Serve until the process is killed; its leases then end soon."""
    torch.set_num_threads(1)
    claims.LEASE, claims.RENEWED = 1.0, 0.2
    with serving(url, journal=True) as served:
        started.send(served.url)
        threading.Event().wait()

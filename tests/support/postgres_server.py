"""A real PostgreSQL server in a temporary folder, reached through a socket in it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
# PostgreSQL refuses to run as root.
USER = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name


class PostgresServer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = count()
        if os.getuid() == 0:
            shutil.chown(folder, USER, USER)
        self.run("initdb", "--username=test", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8")
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        other: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.getuid() == 0 else {}
        command = [FOLDERS[-1] / program, f"--pgdata={self.folder}", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, timeout=120, **other)

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self.run("pg_ctl", "start", "--wait", f"--log={self.folder}/log", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def new_database(self) -> str:
        """The URL of an empty database: a schema of its own in one database, because a database has hundreds of files."""
        import psycopg

        name = f"test{next(self.numbers)}"
        with psycopg.connect(host=str(self.folder), user="test", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"postgresql://test@/postgres?host={self.folder}&options=-csearch_path%3D{name}"


def why_not() -> str | None:
    """Why no server can run here; None if one can."""
    if not FOLDERS:
        return "PostgreSQL is not installed: there is no /usr/lib/postgresql/*/bin"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"PostgreSQL does not run as root, and there is no user {USER}"
    return None


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="deltamem-postgres-") as folder:
        server = PostgresServer(Path(folder))
        try:
            yield server
        finally:
            server.stop("immediate")

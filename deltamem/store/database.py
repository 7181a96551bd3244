"""One database, SQLite or PostgreSQL: how it is opened, and its transactions."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from deltamem.io.files import check_regular
from deltamem.store.errors import StoreError, Unavailable

# How long to wait for a lock or a server.
PATIENCE_SECONDS = 10
DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgresql+psycopg": "postgresql+psycopg"}
# Readers do not wait for writers; what is committed survives a power loss; rows go with their memory; what is deleted is
# overwritten, and no copy of it goes into a temporary file.
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", "temp_store=MEMORY")


class Database:
    """A database's connections, and transactions on them. Threads can share it.

    Args:
        url: a file path, `sqlite:///PATH`, or `postgresql://USER@HOST/NAME`.

    Raises:
        ValueError: it names another kind of database, no file, or needs a package that is not installed.
        Unavailable: the file cannot be opened.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        parsed = _parsed(os.fspath(url))
        self.name = parsed.render_as_string(hide_password=True)
        self._is_sqlite = parsed.get_backend_name() == "sqlite"
        if self._is_sqlite:
            self._make_file(parsed.database or "")
        self._engine = _sqlite_engine(parsed) if self._is_sqlite else _postgresql_engine(parsed)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            Unavailable: the database cannot be reached, or is locked too long.
        """
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write; it is committed at the end of the block, or taken back after an error.

        Raises:
            Unavailable: see `reading`.
        """
        with self._transaction(writes=True) as connection:
            yield connection

    def wipe(self) -> None:
        """Remove what was deleted from SQLite's write-ahead log, too; later, if another process is reading just now."""
        if not self._is_sqlite:
            return
        with suppress(DBAPIError, PoolTimeout, sqlite3.Error):  # the deletion itself is committed
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.close()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, writes: bool) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection, connection.execution_options(writes=writes).begin():
                yield connection
        except IntegrityError:  # says something about the rows, not about the database
            raise
        except (DBAPIError, PoolTimeout) as error:
            reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
            raise Unavailable(
                f"the database {self.name} does not answer: {reason}. Check that it runs and can be written, then try again"
            ) from error

    def _make_file(self, path: str) -> None:
        """Create SQLite's file if there is none, for its owner alone; SQLite gives its log the same permissions."""
        check_regular(path)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise Unavailable(f"the database {self.name} cannot be opened: {error}. Check the path") from error


def _parsed(url: str) -> URL:
    """Read a URL or a path; a database's short name chooses its driver.

    Raises:
        ValueError: see `Database`.
    """
    scheme, is_url, _ = url.partition("://")
    try:
        parsed = make_url(url).set(drivername=DRIVERS[scheme]) if is_url else URL.create("sqlite", database=url)
    except (KeyError, ArgumentError, ValueError) as error:  # the rest of it is not shown: it may have a password
        raise ValueError(
            f"the database {scheme}://... is not accepted; give the path of a file, sqlite:///PATH or postgresql://USER@HOST/NAME"
        ) from error
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("a store in SQLite needs a file, because each connection opens it anew; give its path")
    return parsed


def _sqlite_engine(url: URL) -> Engine:
    # Without an isolation level, Python's module leaves it to `begin` below when transactions begin.
    engine = _engine(url, {"timeout": PATIENCE_SECONDS, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, record: Any) -> None:
        for pragma in PRAGMAS:
            _set(connection, pragma)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its lock at once: one that has read before would be refused if another wrote meanwhile.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _set(connection: sqlite3.Connection, pragma: str) -> None:
    """Set a pragma, waiting for locks: SQLite itself does not wait when it turns to a write-ahead log."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        with suppress(sqlite3.OperationalError):
            connection.execute(f"PRAGMA {pragma}").fetchall()
            return
        time.sleep(0.01)
    connection.execute(f"PRAGMA {pragma}").fetchall()


def _postgresql_engine(url: URL) -> Engine:
    try:
        # A server that vanished is noticed by the second number, in milliseconds.
        engine = _engine(url, {"connect_timeout": PATIENCE_SECONDS, "tcp_user_timeout": PATIENCE_SECONDS * 1000})
    except ModuleNotFoundError as error:
        raise StoreError("PostgreSQL needs the package psycopg; run: pip install 'deltamem[postgres]'") from error

    @event.listens_for(engine, "connect")
    def limit_waiting(connection: Any, record: Any) -> None:
        connection.execute(f"SET lock_timeout = '{PATIENCE_SECONDS}s'")
        connection.commit()

    return engine


def _engine(url: URL, connect_args: dict[str, Any]) -> Engine:
    # Parameters are what users said: hidden, they do not get into errors and logs.
    return create_engine(
        url, connect_args=connect_args, pool_pre_ping=True, pool_timeout=PATIENCE_SECONDS, hide_parameters=True
    )

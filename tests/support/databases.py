"""The databases that tests run on, as fixtures: SQLite, and a real PostgreSQL where one is installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    servers = pytest.importorskip("postgres_server", reason="PostgreSQL is run with the means of POSIX")
    reason = servers.why_not()
    if reason is not None:
        pytest.skip(reason)
    with servers.postgres_server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database."""
    if request.param == "sqlite":
        return str(tmp_path / "memories.db")
    return request.getfixturevalue("server").new_database()

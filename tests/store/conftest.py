"""Every test of a store runs on both databases."""

from collections.abc import Iterator

import pytest
from databases import server, url

from deltamem.store import Store

__all__ = ["server", "url"]


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list of one number, to be turned by hand."""
    now = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    return now

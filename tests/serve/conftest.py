"""Servers for the tests, and both databases where it makes a difference where the memories are kept."""

import pytest
from databases import server, url
from served import serving

__all__ = ["server", "url"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server that keeps journals."""
    with serving(tmp_path_factory.mktemp("store") / "memories.db", journal=True) as served:
        yield served

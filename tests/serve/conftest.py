"""Servers keep their memories in both databases where that makes a difference."""

from databases import server, url

__all__ = ["server", "url"]

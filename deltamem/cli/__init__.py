"""The `deltamem` command."""

from deltamem.cli.app import app

__all__ = ["app"]

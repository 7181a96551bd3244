"""The `deltamem` command with all of its own; `--help` lists them in the order in which they are imported."""

from deltamem.cli import demo, chat, bench, inspect, train, convert, evaluate, study, push  # noqa: F401, I001
from deltamem.cli.common import app

__all__ = ["app"]

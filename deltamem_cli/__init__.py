"""The `deltamem` command with all its subcommands; `--help` lists them in import order."""

from deltamem_cli import demo, chat, serve, bench, inspect, train, convert, evaluate, study, push  # noqa: F401, I001
from deltamem_cli.common import app

__all__ = ["app"]

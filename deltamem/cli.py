"""The `deltamem` command.

It stands in a package beside this one, so that `deltamem --help` does not wait for torch: that package imports this one only
when a command runs.
"""

from deltamem_cli import app

__all__ = ["app"]

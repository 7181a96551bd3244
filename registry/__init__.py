"""The model families that δ-mem attaches to, one file each with a mapping `HOOKS` from model types to attention hooks.

New files in this folder are found automatically. This package registers its `HOOKS`, merged from all families, under the
entry-point group `deltamem.registry`, as any other package would.
"""

from importlib import import_module
from pkgutil import iter_modules

from deltamem.hook.attention_hook import Entry


def _collected() -> dict[str, Entry]:
    hooks: dict[str, Entry] = {}
    for family in iter_modules(__path__):
        own = import_module(f"{__name__}.{family.name}").HOOKS
        twice = hooks.keys() & own.keys()
        if twice:
            raise ValueError(f"two families register the model types {', '.join(sorted(twice))}; one is {family.name}")
        hooks |= own
    return hooks


HOOKS = _collected()

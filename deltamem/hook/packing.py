"""Packing: the layout of several parts in the output of one module, described as in "kv_heads x (q k v)"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from deltamem.hook.projection import Projection, width_out

ACCEPTED = 'such as "q k v", "heads x (q gate)", "kv_heads x (q k v)", "heads x (k:qk_nope_head_dim v:v_head_dim)"'
GROUPED = re.compile(r"(?P<groups>\w+) x \((?P<parts>[^()]+)\)")
PART = re.compile(r"(?P<name>\w+)(:(?P<width>\w+))?")

# The names under which attention modules and configurations store the numbers of heads.
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KV_HEADS = ("num_kv_heads", "num_key_value_heads", "kv_heads", *HEADS)
OTHER_NAMES = (
    "If they have other names in the configuration, give its class an attribute_map, such as "
    '{"num_attention_heads": "their_name", "num_key_value_heads": "their_name"}'
)
# The number of heads of each part. A "gate" scales the attention's output per head.
COUNTED_BY = {"q": HEADS, "gate": HEADS, "k": KV_HEADS, "v": KV_HEADS}


@dataclass(frozen=True)
class Packing:
    """A module's output consists of `groups` groups of equal size, each with the same parts in the same order.

    Args:
        groups: the number of groups, or the name of a number: "heads" or "kv_heads".
        parts: the names of the parts, each with the configuration's name for the width of a head; None if all are equally wide.
    """

    groups: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Packing:
        """Parse a description: parts in their order, or `GROUPS x (parts)`; a part is `NAME` or `NAME:WIDTH`.

        Raises:
            ValueError: the description has another form.
        """
        grouped = GROUPED.fullmatch(text) if isinstance(text, str) else None
        inner = grouped["parts"] if grouped else text
        parts = [PART.fullmatch(part) for part in inner.split(" ")] if isinstance(inner, str) else []
        groups = grouped["groups"] if grouped else "1"
        names = [part["name"] for part in parts if part]
        if len(names) < max(len(parts), 2) or not {*names} <= {*COUNTED_BY} or not (groups.isdigit() or groups in COUNTS):
            raise ValueError(
                f"packing {text!r} is not accepted; give parts named {', '.join(COUNTED_BY)} in their order in the output, "
                f"{ACCEPTED}"
            )
        return cls(groups, tuple((part["name"], part["width"]) for part in parts if part))

    def place(self, role: str, module: nn.Module, attention: nn.Module, config: Any) -> Projection:
        """Locate a role in the output of a module.

        Args:
            role: the name of a part.
            module: the packed projection.
            attention: the attention module, from which the numbers of heads are read.
            config: the configuration, which has the numbers of heads if `attention` does not.

        Raises:
            ValueError: the output cannot be divided in this way.
        """
        groups = int(self.groups) if self.groups.isdigit() else _number(COUNTS[self.groups], attention, config)
        # With one group per query head, every part has that many heads.
        heads = {
            name: _number(HEADS if self.groups == "heads" else COUNTED_BY[name], attention, config) for name, _ in self.parts
        }
        given = {name: _number((width,), attention, config) for name, width in self.parts if width}
        rest = width_out(module) - sum(heads[name] * width for name, width in given.items())
        shared = sum(heads[name] for name, width in self.parts if not width)
        unit, left = divmod(rest, shared) if shared else (0, rest)
        sizes = {name: heads[name] * given.get(name, unit) for name, _ in self.parts}  # of each part, over all groups
        if left or unit < 0 or any(number % groups for number in heads.values()):
            raise ValueError(
                f"a packing of {groups} groups of {' '.join(sizes)} ({heads} heads) does not fit {type(attention).__name__}: "
                f"its projection has {width_out(module)} outputs. {OTHER_NAMES}"
            )
        names = [*sizes]
        before, after = names[: names.index(role)], names[names.index(role) + 1 :]
        return Projection(module, groups, *(sum(sizes[name] // groups for name in part) for part in (before, after)))


COUNTS = {"heads": HEADS, "kv_heads": KV_HEADS}


def _number(names: tuple[str, ...], attention: nn.Module, config: Any) -> int:
    """The first integer with one of these names in the attention module, or else in the configuration."""
    for owner in (attention, config):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    raise ValueError(
        f"neither {type(attention).__name__} nor the model's configuration has any of {', '.join(names)}. {OTHER_NAMES}"
    )

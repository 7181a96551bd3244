"""MemoryKind: what the library asks of an update rule.

Shapes: B batch rows, T tokens, W width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

# The state of one attention layer: its parts by name, float32 [B, ...].
LayerState = Mapping[str, Tensor]

# The name of the part, where a state has only one.
STATE = "state"
ENTRY_POINTS = "deltamem.memory_kinds"


class Outcome(NamedTuple):
    """What came of a sequence in one layer.

    Args:
        reads: [B, T, read_width]; of width 0 if nothing was read.
        state: the layer's state after the last token.
        write_gate_sum: how far the tokens that count opened the write gate, summed over them, [B, states]: one column for
            each of the layer's parallel states.
    """

    reads: Tensor
    state: LayerState
    write_gate_sum: Tensor

    def mean_write_gate(self, valid: Tensor | None, tokens: int) -> Tensor:
        """The mean write gate over states and the tokens that count, a scalar with its gradient."""
        count = len(self.write_gate_sum) * tokens if valid is None else valid.sum().clamp(min=1)
        return self.write_gate_sum.mean(1).sum() / count


class MemoryKind(Protocol):
    """An update rule: which state a layer has, and how tokens read and write it.

    A kind is a value: immutable and hashable. Everything that it computes from the hidden states is linear in them at first:
    the rows `projected` are `hidden [B, T, W] @ weight.T` with one matrix `[read_rows + write_rows, W]` for each layer, and
    to some of the rows that write a bias `[bias_rows]` is added by the kind itself.

    Attributes:
        state_parts: the shapes of the parts of a layer's state by name, without the batch: {"state": (4, 8, 8)}.
        read_rows, write_rows: how many rows reading needs, and writing.
        bias_rows: length of the bias.
        read_width: width of what a token reads, from which the corrections are computed.
        row_groups: heights of the groups of rows by name, in the rows' order: to look at an adapter's weights.
    """

    @property
    def state_parts(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102

    @property
    def read_rows(self) -> int: ...  # noqa: D102

    @property
    def write_rows(self) -> int: ...  # noqa: D102

    @property
    def bias_rows(self) -> int: ...  # noqa: D102

    @property
    def read_width(self) -> int: ...  # noqa: D102

    @property
    def row_groups(self) -> Mapping[str, int]: ...  # noqa: D102

    def read_and_write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        """Every token reads what the tokens before it have written, and then writes; the order within is the kind's.

        Args:
            projected: the rows that read, then those that write, [B, T, read_rows + write_rows].
            bias: [bias_rows].
            state: before the first token; an empty one if None.
            valid: [B, T], False for padding, which reads zero and writes nothing; None if every token counts.
        """
        ...

    def write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        """As `read_and_write` for tokens that only write: of [B, T, write_rows], with reads of width 0."""
        ...

    def read(self, projected: Tensor, state: LayerState, valid: Tensor | None) -> Tensor:
        """The reads [B, T, read_width] of tokens that only read, from their rows [B, T, read_rows]."""
        ...

    def initialise(self, weight: Tensor, bias: Tensor) -> None:
        """Fill the parameters of a new adapter, [read_rows + write_rows, W] and [bias_rows], in place."""
        ...

    def check_fits(self, width: int) -> None:
        """Refuse a backbone whose hidden states have this width, if the memory does not fit it.

        Raises:
            ValueError: it does not; says why.
        """
        ...

    def gates_at_rest(self, bias: Tensor) -> Mapping[str, Tensor]:
        """How far the gates are open by their bias alone, by name, each [gates]: "write", and "keep" if there is one."""
        ...

    def mean_gates(self, projected: Tensor, bias: Tensor) -> Mapping[str, Tensor]:
        """The mean gates of tokens, [B, T] by name, from their rows [B, T, write_rows]: for statistics."""
        ...

    def describe(self) -> str:
        """The states of a layer in a few words, for model cards."""
        ...


def empty_state(kind: MemoryKind, batch: int, device: torch.device) -> dict[str, Tensor]:
    """A layer's state before anything was written: zeros."""
    return {part: torch.zeros((batch, *shape), dtype=torch.float32, device=device) for part, shape in kind.state_parts.items()}


# How a kind is made of an adapter's configuration, by its name there.
_MAKERS: dict[str, Callable[[Any], MemoryKind]] = {}


def register_memory_kind(name: str, make: Callable[[Any], MemoryKind]) -> None:
    """Let `DeltaMemConfig(kind=name)` choose an update rule.

    A package can do without a call: with an entry point of the group `deltamem.memory_kinds`, whose name is the kind's and
    whose object is `make`.

    Args:
        name: of the kind.
        make: takes the `DeltaMemConfig` and gives the kind; raises `ValueError` for options that it does not accept.

    Raises:
        ValueError: another kind has this name.
    """
    if _MAKERS.setdefault(name, make) != make:
        raise ValueError(f"there is a kind of memory named {name!r} already; give another name")


def memory_kind(name: str, config: Any) -> MemoryKind:
    """The kind of an adapter's configuration.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in _MAKERS:
        for entry in entry_points(group=ENTRY_POINTS):
            if entry.name == name:
                register_memory_kind(name, entry.load())
    if name not in _MAKERS:
        raise ValueError(f"kind={name!r} is not accepted; choose one of {', '.join(_MAKERS)}, or register it before")
    return _MAKERS[name](config)

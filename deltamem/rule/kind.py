"""MemoryKind: the interface of an update rule.

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

# The name of the only part of a state that has just one.
STATE = "state"
ENTRY_POINTS = "deltamem.memory_kinds"


class Outcome(NamedTuple):
    """The result of passing a sequence through the memory of one layer.

    Args:
        reads: [B, T, read_width]; of width 0 if nothing was read.
        state: the layer's state after the last token.
        write_gate_sum: how far the real tokens opened the write gate, summed over these tokens, [B, states]: one column per
            parallel state of the layer.
    """

    reads: Tensor
    state: LayerState
    write_gate_sum: Tensor

    def mean_write_gate(self, valid: Tensor | None, tokens: int) -> Tensor:
        """The mean write gate over the states and the real tokens, a scalar with its gradient."""
        count = len(self.write_gate_sum) * tokens if valid is None else valid.sum().clamp(min=1)
        return self.write_gate_sum.mean(1).sum() / count


class MemoryKind(Protocol):
    """An update rule: the state of a layer, and how tokens read and write it.

    A kind is a value: immutable and hashable. It computes everything from one linear map of the hidden states: the rows
    `projected` are `hidden [B, T, W] @ weight.T`, with one matrix `[read_rows + write_rows, W]` per layer. The kind itself adds
    a bias `[bias_rows]` to some of the rows that write.

    Attributes:
        state_parts: the shapes of the parts of a layer's state by name, without the batch: {"state": (4, 8, 8)}.
        read_rows, write_rows: the numbers of rows that reading and writing need.
        bias_rows: length of the bias.
        read_width: width of a token's read, from which the corrections are computed.
        row_groups: the number of rows in each group by name, in order; used to inspect an adapter's weights.
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
        """Let every token read what earlier tokens wrote, and then write.

        Args:
            projected: the rows that read, then the rows that write, [B, T, read_rows + write_rows].
            bias: [bias_rows].
            state: the state before the first token; an empty one if None.
            valid: [B, T], False for padding, which reads zero and writes nothing; None if every token is real.
        """
        ...

    def write(self, projected: Tensor, bias: Tensor, state: LayerState | None, valid: Tensor | None) -> Outcome:
        """`read_and_write` for tokens that only write: from [B, T, write_rows], with reads of width 0."""
        ...

    def read(self, projected: Tensor, state: LayerState, valid: Tensor | None) -> Tensor:
        """`read_and_write` for tokens that only read: the reads [B, T, read_width], from the rows [B, T, read_rows]."""
        ...

    def initialise(self, weight: Tensor, bias: Tensor) -> None:
        """Fill the parameters of a new adapter, [read_rows + write_rows, W] and [bias_rows], in place."""
        ...

    def check_fits(self, width: int) -> None:
        """Refuse a backbone whose hidden states have this width if the memory does not fit it.

        Raises:
            ValueError: the memory does not fit; the message says why.
        """
        ...

    def gates_at_rest(self, bias: Tensor) -> Mapping[str, Tensor]:
        """The gates that the bias alone gives, by name, each [gates]: "write", and "keep" if there is one."""
        ...

    def mean_gates(self, projected: Tensor, bias: Tensor) -> Mapping[str, Tensor]:
        """The mean gates of each token, [B, T] by name, from the rows [B, T, write_rows]; used for statistics."""
        ...

    def describe(self) -> str:
        """Describe the states of a layer in a few words, for model cards."""
        ...


def empty_state(kind: MemoryKind, batch: int, device: torch.device) -> dict[str, Tensor]:
    """A layer's state before the first write: zeros."""
    return {part: torch.zeros((batch, *shape), dtype=torch.float32, device=device) for part, shape in kind.state_parts.items()}


# By the kind's name in an adapter's configuration: what makes the kind from that configuration.
_MAKERS: dict[str, Callable[[Any], MemoryKind]] = {}


def register_memory_kind(name: str, make: Callable[[Any], MemoryKind]) -> None:
    """Let `DeltaMemConfig(kind=name)` choose an update rule.

    A package needs no call if it has an entry point of the group `deltamem.memory_kinds` whose name is the kind's and whose
    object is `make`.

    Args:
        name: the name of the kind.
        make: takes the `DeltaMemConfig` and returns the kind; raises `ValueError` for options that it does not accept.

    Raises:
        ValueError: another kind has this name.
    """
    if _MAKERS.setdefault(name, make) != make:
        raise ValueError(f"there is a kind of memory named {name!r} already; give another name")


def memory_kind(name: str, config: Any) -> MemoryKind:
    """Make the kind for an adapter's configuration.

    Raises:
        ValueError: no kind has this name.
    """
    if name not in _MAKERS:
        for entry in entry_points(group=ENTRY_POINTS):
            if entry.name == name:
                register_memory_kind(name, entry.load())
    if name not in _MAKERS:
        raise ValueError(f"kind={name!r} is not accepted; choose one of {', '.join(_MAKERS)}, or register it first")
    return _MAKERS[name](config)

"""OneToken: what a layer does with the only token of a pass, on a CPU, in one compiled call.

While decoding, a token's arithmetic takes a layer a few microseconds. What counts is all around it, the more so as between two
layers the backbone's weights push everything else out of the processor's caches. So what does not depend on the hidden states
is looked up for all layers at once, before the first of them runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from deltamem.contents import Contents
from deltamem.parts import AdapterParts
from deltamem.passes import MemoryPass, TokenWrites
from deltamem.projection import Projection
from deltamem.rule.backends import choose

Weights = tuple[Tensor, Tensor, dict[str, Tensor]]  # see AdapterParts.weights
FEATURES = 3  # where they stand among the arguments of a correction


class OneToken:
    """One layer's part of such a pass, and what it has read, for the hooks on its projections (see `Reads`).

    Args:
        name: of the layer.
        parts: of the adapter that reads and writes.
        weights: its own, see `AdapterParts.weights`.
        state: the states before the token, `[1, num_states, r, r]`.
        projected, values, end: filled in: the projections `[1, 1, rows]`, the reads `[1, 1, num_states * r]` and the states
            after the token.
        settings: of the compiled call.
        writes: whether the token is written.
    """

    __slots__ = ("_arguments", "_corrections", "_end", "_held", "_name", "_width", "_writes", "parts", "values")

    def __init__(
        self,
        name: str,
        parts: AdapterParts,
        weights: Weights,
        state: Tensor,
        projected: Tensor,
        values: Tensor,
        end: Tensor,
        settings: tuple[int, ...],
        writes: bool,
    ) -> None:
        entrance, bias, corrections = weights
        self.parts, self.values = parts, values
        self._name, self._end = name, end
        self._width = entrance.shape[1]
        self._writes = TokenWrites(projected, bias, None, parts.gating) if writes else None
        self._held = (entrance, bias, state, projected, values, end)  # as long as there are their addresses
        self._arguments = (*[tensor.data_ptr() for tensor in self._held], self._width, *settings)
        reads, rows = values.data_ptr(), values.shape[2]
        self._corrections = {
            role: (reads, weight.data_ptr(), rows, weight.shape[0], parts.scale) for role, weight in corrections.items()
        }

    def read_and_write(self, memory: MemoryPass, hidden: Tensor) -> bool:
        """Read for a hidden state and write it, if it is one and the layer has not run yet; otherwise do nothing."""
        if hidden.numel() != self._width or self._name in memory.end:
            return False
        if hidden.dtype is not torch.float32 or not hidden.is_contiguous():
            hidden = hidden.to(torch.float32).contiguous()
        _kernels().read_and_write_token(*self._arguments, hidden.data_ptr())
        memory.end[self._name] = self._end
        if self._writes is not None:
            memory.token_writes[self._name] = self._writes
        return True

    def correct(self, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Reads.correct`."""
        given = self._corrections.get(role)
        if given is None:
            return output
        if output.dtype is torch.float32 and output.numel() == given[FEATURES] and output.is_contiguous():
            _kernels().correct_token(*given, output.data_ptr())
        else:
            projection.correct_(output, self.values, self.parts.weights()[2][role], self.parts.scale)
        return output


def one_token_each(layers: Mapping[str, AdapterParts], start: Contents, writes: bool) -> dict[str, OneToken]:
    """What every layer does with one token of one memory; nothing if weights are not at hand, or nothing is compiled.

    Args:
        layers: what the adapter has in each of them.
        start: the memory before the token.
        writes: whether the token is written.
    """
    weights = [parts.weights() for parts in layers.values()]
    if choose("auto", "cpu") != "compiled" or not all(map(_at_hand, weights)):
        return {}
    gating = next(iter(layers.values())).gating  # all have the adapter's
    settings = _kernels().token_settings(gating, writes)
    count, rows = len(layers), gating.query_rows + (gating.write_rows if writes else 0)
    empty = torch.zeros(1, gating.num_states, gating.r, gating.r)
    before = [start.states.get(name, empty).to("cpu", torch.float32).contiguous() for name in layers]
    shapes = ((1, 1, rows), (1, 1, gating.query_rows), empty.shape)
    projected, values, ends = (torch.empty(count, *shape).unbind() for shape in shapes)
    each = zip(
        layers, layers.values(), weights, before, projected, values, ends, repeat(settings), repeat(writes), strict=False
    )
    return {given[0]: OneToken(*given) for given in each}


def _at_hand(weights: Weights) -> bool:
    """Whether a layer's weights are what a compiled call takes by their addresses."""
    entrance, bias, corrections = weights
    for weight in (entrance, bias, *corrections.values()):
        if type(weight) is not nn.Parameter:  # a shard of one, for instance
            return False
        if not (weight.is_cpu and weight.dtype is torch.float32 and weight.is_contiguous()):
            return False
    return True


@cache
def _kernels() -> Any:
    return import_module("deltamem.rule.cpu.token")

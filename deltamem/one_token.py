"""OneToken: what a layer does with the only new token of each row, in as few calls as there can be.

While decoding, a token's arithmetic takes a layer a few microseconds. What counts is all around it: on a CPU, whose caches the
backbone's weights fill anew between two layers, and on a GPU, which waits for the next call. So what does not depend on the
hidden states is looked up for all layers at once, before the first of them runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltamem.contents import Contents
from deltamem.parts import AdapterParts
from deltamem.passes import MemoryPass, TokenWrites
from deltamem.projection import Projection
from deltamem.rule.backends import choose

Weights = tuple[Tensor, Tensor, dict[str, Tensor]]  # see AdapterParts.weights


class Buffers(NamedTuple):
    """What one layer starts from, and the tensors that its calls fill in; all float32 and contiguous.

    Args:
        state: the states before the token, `[batch, num_states, r, r]`.
        projected: filled in: the projections `[batch, 1, rows]`, the rows q alone if the token is not written.
        values: filled in: the reads `[batch, 1, num_states * r]`.
        end: filled in: the states after the token.
    """

    state: Tensor
    projected: Tensor
    values: Tensor
    end: Tensor


class OneToken:
    """One layer's part of such a pass, and what it has read, for the hooks on its projections (see `Reads`).

    Args:
        name: of the layer.
        parts: of the adapter that reads and writes.
        weights: its own.
        buffers: of the layer.
        valid: `[batch, 1]`, which rows' token counts; None if all do.
        writes: whether the token is written.
    """

    __slots__ = ("_buffers", "_corrections", "_entrance", "_name", "_numbers", "_valid", "_writes", "parts", "values")

    def __init__(
        self, name: str, parts: AdapterParts, weights: Weights, buffers: Buffers, valid: Tensor | None, writes: bool
    ) -> None:
        entrance, bias, self._corrections = weights
        self.parts, self.values = parts, buffers.values
        self._name, self._entrance, self._buffers, self._valid = name, (entrance, bias), buffers, valid
        self._numbers = buffers.state.shape[0] * entrance.shape[1]
        self._writes = TokenWrites(buffers.projected, bias, valid, parts.gating) if writes else None

    def read_and_write(self, memory: MemoryPass, hidden: Tensor) -> bool:
        """Read for the hidden states of a token and write it, if they are one's and the layer has not run yet.

        Args:
            memory: the pass.
            hidden: `[batch, 1, width]`.

        Returns:
            Whether it did; if not, nothing has happened.
        """
        if hidden.numel() != self._numbers or self._name in memory.end:
            return False
        self._run(hidden)
        memory.end[self._name] = self._buffers.end
        if self._writes is not None:
            memory.token_writes[self._name] = self._writes
        return True

    def correct(self, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Reads.correct`."""
        weight = self._corrections.get(role)
        if weight is not None and not self._correct(role, output):
            projection.correct_(output, self.values, weight, self.parts.scale)
        return output

    def _run(self, hidden: Tensor) -> None:
        """Fill in the buffers."""
        raise NotImplementedError

    def _correct(self, role: str, output: Tensor) -> bool:
        """Correct an output in place, in one call; False if it is not one for that."""
        raise NotImplementedError


class CompiledToken(OneToken):
    """On a CPU, of a single row that counts: compiled calls, which take the tensors' addresses."""

    __slots__ = ("_arguments", "_correction_arguments")

    def __init__(
        self, name: str, parts: AdapterParts, weights: Weights, buffers: Buffers, valid: Tensor | None, writes: bool
    ) -> None:
        super().__init__(name, parts, weights, buffers, valid, writes)
        entrance, bias, corrections = weights
        settings = _cpu().token_settings(parts.gating, writes)
        addresses = [tensor.data_ptr() for tensor in (entrance, bias, *buffers)]
        self._arguments = (*addresses, entrance.shape[1], *settings)
        reads, rows = buffers.values.data_ptr(), buffers.values.shape[2]
        self._correction_arguments = {
            role: (reads, weight.data_ptr(), rows, weight.shape[0], parts.scale) for role, weight in corrections.items()
        }

    def _run(self, hidden: Tensor) -> None:
        if hidden.dtype is not torch.float32 or not hidden.is_contiguous():
            hidden = hidden.to(torch.float32).contiguous()
        _cpu().read_and_write_token(*self._arguments, hidden.data_ptr())

    def _correct(self, role: str, output: Tensor) -> bool:
        given = self._correction_arguments[role]
        if output.dtype is not torch.float32 or output.numel() != self._corrections[role].shape[0]:
            return False
        if not output.is_contiguous():
            return False
        _cpu().correct_token(*given, output.data_ptr())
        return True


class TritonToken(OneToken):
    """On a GPU, of any number of rows: one launch for the reads and the write, and one for each correction."""

    __slots__ = ()

    def _run(self, hidden: Tensor) -> None:
        gating, writes = self.parts.gating, self._writes is not None
        _gpu().read_and_write_token(hidden.contiguous(), *self._entrance, *self._buffers, self._valid, gating, writes)

    def _correct(self, role: str, output: Tensor) -> bool:
        weight = self._corrections[role]
        if output.numel() != len(self.values) * weight.shape[0] or not output.is_contiguous():
            return False
        _gpu().correct_token(output, self.values, weight, self.parts.scale)
        return True


WAYS: dict[str, type[OneToken]] = {"compiled": CompiledToken, "triton": TritonToken}


def way_for(new: Tensor, valid: Tensor | None) -> type[OneToken] | None:
    """How one new token of each row is taken where it is; None if there is no such way.

    Args:
        new: `[batch, 1]`, or embeddings.
        valid: `[batch, 1]`, which rows' token counts; None if all do.
    """
    way = WAYS.get(choose("auto", new.device.type))
    return None if way is CompiledToken and (new.shape[0] > 1 or valid is not None) else way


def one_token_each(
    way: type[OneToken],
    layers: Mapping[str, AdapterParts],
    start: Contents,
    device: torch.device,
    valid: Tensor | None,
    writes: bool,
) -> dict[str, OneToken]:
    """What every layer does with one token a row; nothing where weights are not at hand.

    Args:
        way: see `way_for`.
        layers: what the adapter has in each of them.
        start: the memory before the token.
        device: of the token.
        valid: `[batch, 1]`, which rows' token counts; None if all do.
        writes: whether the token is written.
    """
    weights = [parts.weights() for parts in layers.values()]
    if not all(_at_hand(given, device) for given in weights):
        return {}
    gating = next(iter(layers.values())).gating  # all have the adapter's
    count, batch, rows = len(layers), start.rows, gating.query_rows + (gating.write_rows if writes else 0)
    empty = torch.zeros(batch, gating.num_states, gating.r, gating.r, device=device)
    before = [start.states.get(name, empty).to(device, torch.float32).contiguous() for name in layers]
    shapes = ((batch, 1, rows), (batch, 1, gating.query_rows), empty.shape)
    filled = zip(before, *(torch.empty(count, *shape, device=device).unbind() for shape in shapes), strict=True)
    counts = None if valid is None else valid.contiguous()
    return {
        name: way(name, parts, given, Buffers(*buffers), counts, writes)
        for (name, parts), given, buffers in zip(layers.items(), weights, filled, strict=True)
    }


def _at_hand(weights: Weights, device: torch.device) -> bool:
    """Whether a layer's weights are what a compiled call takes as they are."""
    entrance, bias, corrections = weights
    on_cpu = device.type == "cpu"
    for weight in (entrance, bias, *corrections.values()):
        if type(weight) is not nn.Parameter:  # a shard of one, for instance
            return False
        if not (weight.dtype is torch.float32 and weight.is_contiguous()):
            return False
        if not (weight.is_cpu if on_cpu else weight.device == device):  # the quicker question, where it is one
            return False
    return True


@cache
def _cpu() -> Any:
    return import_module("deltamem.rule.cpu.token")


@cache
def _gpu() -> Any:
    return import_module("deltamem.rule.gpu.token")

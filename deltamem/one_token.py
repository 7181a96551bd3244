"""OneToken: what a layer does with the only new token of each row, in as few calls as there can be.

While decoding, a token's arithmetic takes a layer a few microseconds. What counts is all around it: on a CPU, whose caches the
backbone's weights fill anew between two layers, and on a GPU, which waits for the next call. So what does not depend on the
hidden states is looked up for all layers at once, before the first of them runs.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from deltamem.contents import Contents
from deltamem.parts import AdapterParts
from deltamem.passes import MemoryPass, TokenWrites
from deltamem.projection import Projection
from deltamem.rule.backends import choose
from deltamem.weights_at_hand import Correction, LayerWeights, WeightsAtHand

if TYPE_CHECKING:
    from typing_extensions import Self  # of the standard library from Python 3.11 on


class Buffers(NamedTuple):
    """What layers start from, and the tensors that their calls fill in; all float32 and contiguous.

    Args:
        state: the states before the token, `[batch, num_states, r, r]`; of all layers, a list.
        projected: filled in: the projections `[batch, 1, rows]`, the rows q alone if the token is not written; of all layers,
            like the others, one tensor with the layers in front.
        values: filled in: the reads `[batch, 1, num_states * r]`.
        end: filled in: the states after the token.
    """

    state: Any
    projected: Tensor
    values: Tensor
    end: Tensor


class OneToken:
    """One layer's part of such a pass, and what it has read, for the hooks on its projections (see `Reads`).

    Args:
        name: of the layer.
        weights: of the adapter, there.
        buffers: of the layer.
        valid: `[batch, 1]`, which rows' token counts; None if all do.
        writes: whether the token is written.
    """

    __slots__ = ("_buffers", "_name", "_valid", "_weights", "_writes")

    def __init__(self, name: str, weights: LayerWeights, buffers: Buffers, valid: Tensor | None, writes: bool) -> None:
        self._name, self._weights, self._buffers, self._valid, self._writes = name, weights, buffers, valid, writes

    @classmethod
    def each(cls, at_hand: WeightsAtHand, buffers: Buffers, valid: Tensor | None, writes: bool) -> dict[str, Self]:
        """The parts of all layers, by their names; `buffers` are those of all layers."""
        own = map(Buffers, buffers.state, *(tensor.unbind() for tensor in buffers[1:]))
        layers = zip(at_hand.layers.items(), own, strict=True)
        return {name: cls(name, weights, given, valid, writes) for (name, weights), given in layers}

    @property
    def values(self) -> Tensor:
        """The reads, `[batch, 1, num_states * r]`."""
        return self._buffers.values

    @property
    def parts(self) -> AdapterParts:
        """Of the adapter that reads and writes."""
        return self._weights.parts

    def read_and_write(self, memory: MemoryPass, hidden: Tensor) -> bool:
        """Read for the hidden states of a token and write it, if they are one's and the layer has not run yet.

        Args:
            memory: the pass.
            hidden: `[batch, 1, width]`.

        Returns:
            Whether it did; if not, nothing has happened.
        """
        weights, buffers = self._weights, self._buffers
        if hidden.numel() != memory.batch * weights.width or self._name in memory.end:
            return False
        self._run(hidden)
        memory.end[self._name] = buffers.end
        if self._writes:
            memory.token_writes[self._name] = TokenWrites(buffers.projected, weights.bias, self._valid, weights.parts.gating)
        return True

    def correct(self, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Reads.correct`."""
        correction = self._weights.corrections.get(role)
        if correction is not None and not self._correct(correction, output):
            projection.correct_(output, self.values, correction.weight, self.parts.scale)
        return output

    def _run(self, hidden: Tensor) -> None:
        """Fill in the buffers."""
        raise NotImplementedError

    def _correct(self, correction: Correction, output: Tensor) -> bool:
        """Correct an output in place, in one call; False if it is not one for that."""
        raise NotImplementedError


class CompiledToken(OneToken):
    """On a CPU, of a single row that counts: compiled calls, which find the tensors' addresses in a table."""

    __slots__ = ("_row", "_table")
    _row: int
    _table: Any

    @classmethod
    def each(cls, at_hand: WeightsAtHand, buffers: Buffers, valid: Tensor | None, writes: bool) -> dict[str, Self]:
        """See `OneToken.each`."""
        table = _cpu().filled(at_hand.once(writes, partial(_table, writes=writes)), *buffers)
        tokens = super().each(at_hand, buffers, valid, writes)
        rows = range(table.ctypes.data, table.ctypes.data + table.nbytes, table.strides[0])
        for token, row in zip(tokens.values(), rows, strict=True):
            token._row, token._table = row, table  # which lives as long as its rows are read
        return tokens

    def _run(self, hidden: Tensor) -> None:
        if hidden.dtype is not torch.float32 or not hidden.is_contiguous():
            hidden = hidden.to(torch.float32).contiguous()
        _cpu().read_and_write_token(self._row, hidden.data_ptr())

    def _correct(self, correction: Correction, output: Tensor) -> bool:
        if output.dtype is not torch.float32 or output.numel() != correction.features or not output.is_contiguous():
            return False
        _cpu().correct_token(self._row, correction.number, self._weights.parts.scale, output.data_ptr())
        return True


class TritonToken(OneToken):
    """On a GPU, of any number of rows: one launch for the reads and the write, and one for each correction."""

    __slots__ = ()

    def _run(self, hidden: Tensor) -> None:
        weights = self._weights
        _gpu().read_and_write_token(
            hidden.contiguous(), weights.entrance, weights.bias, *self._buffers, self._valid, weights.parts.gating, self._writes
        )

    def _correct(self, correction: Correction, output: Tensor) -> bool:
        if output.numel() != len(self.values) * correction.features or not output.is_contiguous():
            return False
        _gpu().correct_token(output, self.values, correction.weight, self.parts.scale)
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
    way: type[OneToken], at_hand: WeightsAtHand, start: Contents, valid: Tensor | None, writes: bool
) -> dict[str, OneToken]:
    """What every layer does with one token a row; nothing where weights are not at hand.

    Args:
        way: see `way_for`.
        at_hand: the adapter's weights.
        start: the memory before the token.
        valid: `[batch, 1]`, which rows' token counts; None if all do.
        writes: whether the token is written.
    """
    layers = at_hand.layers
    if not layers:
        return {}
    gating, device = at_hand.gating, at_hand.device
    rows = gating.query_rows + (gating.write_rows if writes else 0)
    empty = torch.zeros(start.rows, gating.num_states, gating.r, gating.r, device=device)
    before = [_ready(start.states.get(name, empty), device) for name in layers]
    shapes = ((start.rows, 1, rows), (start.rows, 1, gating.query_rows), empty.shape)
    filled = (torch.empty(len(layers), *shape, device=device) for shape in shapes)
    return {**way.each(at_hand, Buffers(before, *filled), None if valid is None else valid.contiguous(), writes)}


def _table(at_hand: WeightsAtHand, writes: bool) -> Any:
    layers = [*at_hand.layers.values()]
    return _cpu().token_table(
        [weights.entrance for weights in layers],
        [weights.bias for weights in layers],
        [[correction.weight for correction in weights.corrections.values()] for weights in layers],
        at_hand.gating,
        writes,
    )


def _ready(state: Tensor, device: torch.device) -> Tensor:
    """A state as the calls take it."""
    if state.dtype is torch.float32 and state.is_contiguous() and state.device == device:
        return state  # what the next line does, too, in three times the time
    return state.to(device, torch.float32).contiguous()


@cache
def _cpu() -> Any:
    return import_module("deltamem.rule.cpu.token")


@cache
def _gpu() -> Any:
    return import_module("deltamem.rule.gpu.token")

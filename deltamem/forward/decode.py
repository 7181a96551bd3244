"""DecodeStep: what the layers do with the only new token of each row, in as few calls as there can be.

While decoding, a token's arithmetic takes a layer a few microseconds. What counts is all around it: on a CPU, whose caches the
backbone's weights fill anew between two layers, and on a GPU, which waits for the next call. So what does not depend on the
hidden states is looked up for all layers at once, before the first of them runs, and they share their tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from importlib import import_module

import torch
from torch import Tensor

from deltamem.forward.corrections import Corrections
from deltamem.forward.decode_weights import DecodeWeights
from deltamem.forward.memory_pass import TokenWrites
from deltamem.forward.packed import Packed
from deltamem.hook.projection import Projection
from deltamem.memory.snapshot import Snapshot
from deltamem.rule.backends import choose

# By the backend of the rule: the module and the class in it.
WAYS = {
    "compiled": ("deltamem.forward.decode_cpu", "CpuDecodeStep"),
    "triton": ("deltamem.forward.decode_gpu", "GpuDecodeStep"),
}


class DecodeStep:
    """One token of each row in all layers: how it is read and written, and what was read, for the hooks on the projections.

    Args:
        at_hand: the adapter's weights.
        start: the memory before the token.
        valid: `[batch, 1]`, which rows' token counts; None if all do.
        writes: whether the token is written.

    Attributes:
        end: the states after the token, of the layers that have run.
        token_writes: what these have written.
    """

    def __init__(self, at_hand: DecodeWeights, start: Snapshot, valid: Tensor | None, writes: bool) -> None:
        gating, layers, rows = at_hand.parts.gating, len(at_hand.layers), start.rows
        self._layers, self._scale, self._batch, self._writes = at_hand.layers, at_hand.parts.scale, rows, writes
        self._valid = None if valid is None else valid.contiguous()
        width = gating.query_rows + (gating.write_rows if writes else 0)
        # Of all layers the states before the token, `[layers, batch, num_states, r, r]`, and what the calls fill in: the
        # projections `[layers, batch, 1, rows]` (the rows q alone if nothing is written), the reads
        # `[layers, batch, 1, num_states * r]` and the states after the token.
        self._start = _packed(start, at_hand)
        new_empty = partial(torch.empty, dtype=torch.float32, device=at_hand.device)
        self._projected = new_empty((layers, rows, 1, width))
        self._values = new_empty((layers, rows, 1, gating.query_rows))
        self._end = torch.empty_like(self._start)
        self._numbers = at_hand.numbers
        self._ran: dict[str, int] = {}
        self.end: Mapping[str, Tensor] = Packed(self._ran, self._end)
        self.token_writes: Mapping[str, TokenWrites] = _Writes(self._ran, self) if writes else {}

    def read_and_write(self, layer: str, hidden: Tensor) -> bool:
        """Read for a token's hidden states and write it, if the layer has the adapter, has not run yet and is given one token.

        Args:
            layer: its name.
            hidden: `[batch, 1, width]`.

        Returns:
            Whether it did; if not, nothing has happened.
        """
        raise NotImplementedError

    def states_after(self) -> Packed:
        """As `end`; where all layers have run, in a form from which another token can start with the same weights."""
        return Packed(self._numbers if len(self._ran) == len(self._numbers) else self._ran, self._end)

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Corrections.apply`."""
        raise NotImplementedError

    def of(self, layer: str) -> Corrections:
        """What a layer has read."""
        weights = self._layers[layer]
        return Corrections(self._values[weights.number], weights.parts, in_place=True, valid=None)

    def written(self, layer: str) -> TokenWrites:
        """What a layer has written."""
        weights = self._layers[layer]
        gating = weights.parts.gating
        return TokenWrites(self._projected[weights.number][..., gating.query_rows :], weights.bias, self._valid, gating)


class _Writes(Mapping[str, TokenWrites]):
    """What the layers that have run have written, put together where somebody asks for it."""

    def __init__(self, ran: Mapping[str, int], token: DecodeStep) -> None:
        self._ran, self._token = ran, token

    def __getitem__(self, layer: str) -> TokenWrites:
        if layer not in self._ran:
            raise KeyError(layer)
        return self._token.written(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ran)

    def __len__(self) -> int:
        return len(self._ran)


def way_for(new: Tensor, valid: Tensor | None) -> type[DecodeStep] | None:
    """How one new token of each row is taken where it is; None if there is no such way.

    Args:
        new: `[batch, 1]`, or embeddings.
        valid: `[batch, 1]`, which rows' token counts; None if all do.
    """
    backend = choose("auto", new.device.type)
    if backend == "compiled" and (new.shape[0] > 1 or valid is not None):
        return None
    return _way(backend) if backend in WAYS else None


def one_token_of(
    way: type[DecodeStep], at_hand: DecodeWeights, start: Snapshot, valid: Tensor | None, writes: bool
) -> DecodeStep | None:
    """What the layers do with one token a row; None where weights are not at hand.

    Args:
        way: see `way_for`.
        at_hand, start, valid, writes: see `DecodeStep`.
    """
    return way(at_hand, start, valid, writes) if at_hand.layers else None


def _packed(start: Snapshot, at_hand: DecodeWeights) -> Tensor:
    """The states of a memory in one tensor, float32 and contiguous, `[layers, batch, num_states, r, r]`."""
    gating, states = at_hand.parts.gating, start.states
    if at_hand.wrote(states):
        whole = states.whole
    else:
        shape = (start.rows, gating.num_states, gating.r, gating.r)
        empty = torch.zeros(shape, dtype=torch.float32, device=at_hand.device)
        whole = torch.stack([states.get(layer, empty).to(at_hand.device) for layer in at_hand.numbers])
    return whole.to(at_hand.device, torch.float32).contiguous()


@cache
def _way(backend: str) -> type[DecodeStep]:
    """Imported where it is used: what it needs may not be installed."""
    module, name = WAYS[backend]
    return getattr(import_module(module), name)

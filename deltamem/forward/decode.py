"""DecodeStep: the pass of one new token per row, in as few kernel calls as possible.

The arithmetic is cheap: a few microseconds per layer. The cost is cache misses on a CPU, since the backbone evicts our weights
between layers, and launch latency on a GPU. So everything that does not depend on the hidden states is prepared for all layers
at once, before the first of them runs, and all layers share their buffers.

Shapes: L layers, B batch rows, r width of a state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from deltamem.forward.corrections import Correcting, Corrections
from deltamem.forward.decode_weights import Correction, DecodeWeights, LayerTensors
from deltamem.forward.memory_pass import MemoryPass, ReadingLayer, TokenWrites
from deltamem.hook.projection import Projection
from deltamem.memory.snapshot import Snapshot
from deltamem.rule.backends import BACKENDS, choose, load
from deltamem.rule.kind import STATE, LayerState


class DecodeStep(MemoryPass):
    """A pass of one token per row without gradients. It also serves as the corrections of the running layer.

    Args:
        weights: the adapter's weights.
        options: see `MemoryPass`.

    Attributes:
        takes_padding: whether some of the rows may be padding.
    """

    takes_padding: ClassVar[bool]

    def __init__(self, weights: DecodeWeights, **options: Any) -> None:
        super().__init__(**options)
        kind, layers = weights.kind, len(weights.layers)
        self._layers, self._names, self._scale = weights.layers, weights.names, weights.first.scale
        self._valid = None if self.valid is None else self.valid.contiguous()
        width = kind.read_rows + (kind.write_rows if self.write else 0)
        self._device = weights.device
        self._before = self._states_before(weights)  # [L, B, states, r, r]
        # The outputs of the fused kernels; the projections are only the rows that read if nothing is written.
        self._projected = self._new_buffer(layers, 1, width)  # [L, B, 1, rows]
        self._reads = self._new_buffer(layers, 1, kind.read_width)  # [L, B, 1, states * r]
        self._after = self._new_buffer(layers, *self._before.shape[2:])  # [L, B, states, r, r]
        self._ran: dict[str, int] = {}
        self._written = StepWrites(self._ran, self._layers, self._projected, self._valid) if self.write else {}

    def read_and_write(self, layer: ReadingLayer, hidden: Tensor) -> Correcting | None:
        """See `MemoryPass.read_and_write`."""
        name = layer.name
        tensors = self._layers.get(name)
        # If only the model's forward is compiled, the pass was created outside the graph, which cannot contain the fused calls.
        if tensors is None or hidden.numel() != self.batch * tensors.width or name in self._ran or is_dynamo_compiling():
            return super().read_and_write(layer, hidden)
        self._step(tensors, hidden)
        self._ran[name] = tensors.number
        return self

    def apply(self, layer: str, role: str, projection: Projection, output: Tensor) -> Tensor:
        """See `Correcting.apply`."""
        tensors = self._layers[layer]
        correction = tensors.corrections.get(role)
        if correction is None:
            return output
        fits = output.numel() == self.batch * correction.features and output.is_contiguous()
        if not fits or not self._correct(tensors, correction, output):
            return self._corrections(layer).apply(layer, role, projection, output)
        return output

    @property
    def reached(self) -> Collection[str]:
        """See `MemoryPass.reached`."""
        return self._ran

    @property
    def token_writes(self) -> Mapping[str, TokenWrites]:
        """See `MemoryPass.token_writes`."""
        return self._written

    def outcome(self) -> Snapshot:
        """See `MemoryPass.outcome`."""
        return self._counted(Snapshot(self._names, {STATE: self._after}, self.start.tokens))

    def _new_buffer(self, layers: int, *shape: int) -> Tensor:
        """Memory for the outputs of all layers, [L, B, ...]."""
        return torch.empty((layers, self.batch, *shape), dtype=torch.float32, device=self._device)

    def _laid_out(self, states: Tensor) -> Tensor:
        """The states [L, B, ...], laid out in memory as the buffers are."""
        return states.contiguous()

    def _step(self, tensors: LayerTensors, hidden: Tensor) -> None:
        """Read and write one layer's memory for one token per row, [B, 1, width]."""
        raise NotImplementedError

    def _correct(self, tensors: LayerTensors, correction: Correction, output: Tensor) -> bool:
        """Correct a projection's output, contiguous [B, 1, features], in place; return False if the fused kernel cannot."""
        raise NotImplementedError

    def _corrections(self, layer: str) -> Corrections:
        """The unfused corrections of a layer, for outputs that the fused kernel does not take."""
        tensors = self._layers[layer]
        return Corrections(self._reads[tensors.number], tensors.weights, in_place=True, valid=None)

    def _leave(self, layer: str, state: LayerState) -> None:
        """See `MemoryPass._leave`; called only for a layer that took the general path."""
        number = self._layers[layer].number
        self._after[number].copy_(state[STATE])
        self._ran[layer] = number

    def _keep(self, layer: str, writes: TokenWrites) -> None:
        """See `MemoryPass._keep`; called only for a layer that took the general path."""
        tensors = self._layers[layer]
        self._projected[tensors.number][..., tensors.weights.kind.read_rows :].copy_(writes.projected)

    def _states_before(self, weights: DecodeWeights) -> Tensor:
        """The states of all layers before the token, laid out as the buffers are, [L, B, states, r, r]."""
        if not self.start.layers:
            return self._new_buffer(len(weights.layers), *weights.kind.state_parts[STATE]).zero_()
        return self._laid_out(self.start.ordered(weights.names).parts[STATE].to(weights.device))


class StepWrites(Mapping[str, TokenWrites]):
    """The writes of the layers that have run; each layer's `TokenWrites` is made on access.

    It holds no reference to the pass, because a KV cache keeps it for as long as the token can be taken back.
    """

    def __init__(
        self, ran: Mapping[str, int], layers: Mapping[str, LayerTensors], projected: Tensor, valid: Tensor | None
    ) -> None:
        self._ran, self._layers, self._projected, self._valid = ran, layers, projected, valid

    def __getitem__(self, layer: str) -> TokenWrites:
        if layer not in self._ran:
            raise KeyError(layer)
        tensors = self._layers[layer]
        kind = tensors.weights.kind
        return TokenWrites(self._projected[tensors.number][..., kind.read_rows :], tensors.bias, self._valid, kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ran)

    def __len__(self) -> int:
        return len(self._ran)


def decode_step_for(new: Tensor, valid: Tensor | None) -> type[DecodeStep] | None:
    """The decode step for one new token per row; None if their device has no fused kernels for them.

    Args:
        new: [B, 1], or embeddings.
        valid: [B, 1], False for padding; None if every token is real.
    """
    place = BACKENDS[choose("auto", new.device.type)].decode_step
    if place is None:
        return None
    step: type[DecodeStep] = load(place)
    return step if valid is None or step.takes_padding else None

"""MemoryLayer: the memory of one attention module in vLLM.

Shapes: S slots, T tokens of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.kv_cache_interface import MambaSpec

from deltamem.rule import MemoryKind
from deltamem.vllm.adapter import LayerWeights
from deltamem.vllm.batch import Use, read_and_write
from deltamem.vllm.places import Place
from deltamem.vllm.step import MemoryBackend, Step


class MemoryLayer(nn.Module, MambaBase):
    """Corrects the projections of an attention module by what its memory holds.

    The states are in vLLM's cache: one slot per running request, a block of its own. When the packed projection has run, its
    hook takes the hidden states from its arguments, reads and writes the memory, and corrects queries, keys and values; the
    hook of the output projection adds the rest.

    Args:
        name: the name of the attention module.
        kind: the update rule.
        weights: the adapter's weights in this layer.
        scale: factor of the corrections.
        uses: what the request in each slot does with its memory; all layers share it, and the connector changes it.
        device: the device of the model.
    """

    def __init__(
        self,
        name: str,
        kind: MemoryKind,
        weights: LayerWeights,
        scale: float,
        uses: dict[int, Use],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.name, self.kind, self.uses = name, kind, uses
        self.prefix = f"{name}.delta_mem"
        self._scale = scale
        self._reads: Tensor | None = None
        self.entrance: Tensor
        self.bias: Tensor
        # Not parameters: vLLM's loaders would look for them in the backbone's checkpoint.
        self.register_buffer("entrance", weights.entrance.to(device), persistent=False)
        self.register_buffer("bias", weights.bias.to(device), persistent=False)
        self._corrections = dict(weights.corrections)
        self._maps: dict[str, Tensor] = {}
        self.kv_cache: tuple[Tensor, ...] = ()

    def attach(self, projections: Mapping[str, Place]) -> None:
        """Hook the projections of the attention module.

        Raises:
            ValueError: the adapter's corrections have other widths.
        """
        found = {role: projections[role].total for role in self._corrections}
        given = {role: len(weight) for role, weight in self._corrections.items()}
        entrance: Any = projections["q"].module
        if found != given or self.entrance.shape[1] != entrance.input_size:
            raise ValueError(
                f"the adapter's weights for {self.name} are for hidden states of the width {self.entrance.shape[1]} and for "
                f"outputs of the widths {given}, but the model has {entrance.input_size} and {found}; load the backbone that "
                "it was trained on"
            )
        device = self.entrance.device
        # The transposed maps of this rank's features, [read_width, features], in the order in which they run.
        self._maps = {role: projections[role].own_rows(weight).to(device).t() for role, weight in self._corrections.items()}
        packed = {role: projections[role].start for role in self._maps if role != "o"}
        entrance.register_forward_hook(partial(self._enter, packed))
        if "o" in self._maps:
            projections["o"].module.register_forward_hook(self._leave)

    def _enter(self, packed: Mapping[str, int], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the packed projection: read and write the memory, and correct the output in place."""
        self._reads = reads = self.read_and_write(_flat(args[0]))
        if reads is not None:
            features = _flat(output)
            for role, start in packed.items():
                self._add(role, reads, features.narrow(1, start, self._maps[role].shape[1]))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the output projection: correct the output in place."""
        if self._reads is not None:
            self._add("o", self._reads, _flat(output))
            self._reads = None

    def read_and_write(self, hidden: Tensor) -> Tensor | None:
        """Pass the tokens of this step through the memory.

        Args:
            hidden: what enters the packed projection, [T, width].

        Returns:
            The reads, float32 [T, read_width]; None if no request of this step has a memory.
        """
        steps = get_forward_context().attn_metadata
        step: Step | None = None if steps is None else steps[self.prefix]
        groups = [] if step is None else step.groups(self.uses)
        if not groups:
            return None
        return read_and_write(self.kind, self.entrance, self.bias, hidden, self.states, groups)

    def _add(self, role: str, reads: Tensor, output: Tensor) -> None:
        """Add a correction to features [T, features] in place."""
        weight = self._maps[role]
        if output.dtype is torch.float32:
            output.addmm_(reads, weight, alpha=self._scale)
        else:
            output.add_((reads @ weight).mul_(self._scale))  # rounded once, on adding

    @property
    def states(self) -> dict[str, Tensor]:
        """The states by part, float32 [S, ...]: views of vLLM's cache."""
        return dict(zip(self.kind.state_parts, self.kv_cache, strict=True))

    # ------------------------------------------------------------------------------------ what vLLM asks a recurrent layer

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """See `MambaBase`."""
        return tuple(self.kind.state_parts.values())

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """See `MambaBase`."""
        return (torch.float32,) * len(self.kind.state_parts)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """See `MambaBase`."""
        return MambaAttentionBackendEnum.LINEAR

    @property
    def is_kv_cache_tp_replicated(self) -> bool:
        """See `MambaBase`: every rank needs the whole state."""
        return True

    def get_attn_backend(self) -> type[MemoryBackend]:
        """See `AttentionLayerBase`."""
        return MemoryBackend

    def get_kv_cache_spec(self, vllm_config: Any) -> MambaSpec:
        """See `AttentionLayerBase`: one block per request, whatever its length. vLLM pads it to the attention's page."""
        return MambaSpec(
            shapes=self.get_state_shape(),
            dtypes=self.get_state_dtype(),
            block_size=vllm_config.model_config.max_model_len,
            mamba_type=self.mamba_type,
            tp_replicated=True,
        )


def _flat(tensor: Any) -> Tensor:
    """A view [T, features] of what enters or leaves a projection; vLLM's also return their bias."""
    found: Tensor = tensor[0] if isinstance(tensor, tuple) else tensor
    return found.view(-1, found.shape[-1])

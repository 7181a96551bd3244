"""MemoryLayer: the memory of one attention module in vLLM.

Shapes: S slots, T tokens of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.kv_cache_interface import MambaSpec

from deltamem.rule import MemoryKind
from deltamem.rule.kind import STATE
from deltamem.vllm.adapter import LayerWeights
from deltamem.vllm.batch import Entrance, SlotUse, read_and_write
from deltamem.vllm.places import Place
from deltamem.vllm.step import MemoryBackend, Step
from deltamem.vllm.token_step import TokenStep


class MemoryLayer(MambaBase):
    """Corrects the projections of an attention module by what its memory holds.

    The states are in vLLM's cache: one slot per running request, a block of its own. The packed projection, when it has run,
    reads and writes the memory with the hidden states that it was given, and corrects its queries, keys and values; the output
    projection adds the rest. This is no module, and no hooks are used, because both would cost more than the arithmetic.

    Args:
        name: the name of the attention module.
        kind: the update rule.
        weights: the adapter's weights in this layer.
        scale: factor of the corrections.
        uses: what the request in each slot does with its memory; all layers share it, and the connector changes it.

    Attributes:
        states: the states by part, float32 [S, ...]: views of vLLM's cache; none before it is there.
    """

    def __init__(self, name: str, kind: MemoryKind, weights: LayerWeights, scale: float, uses: dict[int, SlotUse]) -> None:
        self.name, self.kind, self.uses = name, kind, uses
        self.prefix = f"{name}.delta_mem"
        self.states: dict[str, Tensor] = {}
        self.kv_cache = ()
        self._weights, self._scale = weights, scale
        self._corrections: Mapping[str, Tensor] = {}

    def attach(self, projections: Mapping[str, Place]) -> None:
        """Take the projections of the attention module over.

        Raises:
            ValueError: the adapter's corrections have other widths.
        """
        entrance, corrections = self._weights.entrance, self._weights.corrections
        module: Any = projections["q"].module
        found = {role: projections[role].total for role in corrections}
        given = {role: len(weight) for role, weight in corrections.items()}
        if found != given or entrance.shape[1] != module.input_size:
            raise ValueError(
                f"the adapter's weights for {self.name} are for hidden states of the width {entrance.shape[1]} and for outputs "
                f"of the widths {given}, but the model has {module.input_size} and {found}; load the backbone that it was "
                "trained on"
            )
        device = next(module.parameters()).device
        # The maps of this rank's features, scaled, [features, read_width].
        maps = {role: (self._scale * projections[role].own_rows(weight)).to(device) for role, weight in corrections.items()}
        weights = LayerWeights(entrance.to(device), self._weights.bias.to(device), maps)
        self._entrance, self._maps = Entrance(self.kind, weights.entrance, weights.bias), maps
        self._token_step = TokenStep.of(self.kind, weights, device)
        packed = {role: projections[role].start for role in maps if role != "o"}
        module.forward = partial(self._enter, module.forward, packed)
        if "o" in maps:
            output: Any = projections["o"].module
            output.forward = partial(self._leave, output.forward)

    def _enter(self, run: Callable[..., Any], packed: Mapping[str, int], hidden: Tensor, *args: Any) -> Any:
        """Run the packed projection, read and write the memory, and correct the output in place."""
        output = run(hidden, *args)
        self._corrections = corrections = self.read_and_write(hidden)
        for role, start in packed.items() if corrections else ():
            correction = corrections[role]
            _flat(output).narrow(1, start, correction.shape[1]).add_(correction)  # rounded once, on adding
        return output

    def _leave(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the output projection, and correct the output in place."""
        output = run(*args, **kwargs)
        if self._corrections:
            _flat(output).add_(self._corrections["o"])
            self._corrections = {}
        return output

    def read_and_write(self, hidden: Tensor) -> Mapping[str, Tensor]:
        """Pass the tokens of this step through the memory.

        Args:
            hidden: what enters the packed projection, [..., width].

        Returns:
            The corrections by role, float32 [T, features]; none if no request of this step has a memory.
        """
        steps = get_forward_context().attn_metadata
        step: Step | None = None if steps is None else steps[self.prefix]
        groups = None if step is None else step.groups(self.uses)
        if not groups:
            return {}
        hidden = _flat(hidden)
        if self._token_step is not None and self._token_step.takes(len(hidden), groups):
            return self._token_step(hidden, self.states[STATE], groups[0])
        reads = read_and_write(self._entrance, hidden, self.states, groups)
        return {role: reads @ weight.T for role, weight in self._maps.items()}

    # ------------------------------------------------------------------------------------ what vLLM asks a recurrent layer

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        """See `MambaBase`."""
        super().bind_kv_cache(kv_cache)
        self.states = dict(zip(self.kind.state_parts, self.kv_cache, strict=True))

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

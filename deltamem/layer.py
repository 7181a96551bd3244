"""DeltaMemLayer: one attention module, with the projections, gates and corrections of its memory."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from deltamem.adapter.layer_weights import LayerWeights
from deltamem.adapter.offloading import device_of, loaded_weight, weight_of
from deltamem.config import DeltaMemConfig
from deltamem.forward.corrections import Correcting
from deltamem.forward.memory_pass import MemoryPass
from deltamem.forward.running import PASS_KEYWORD, running
from deltamem.hook import AttentionHook
from deltamem.hook.attention_hook import ROLES
from deltamem.hook.projection import Projection, width_in

# The initial length of a base-slice column, and the largest number of columns (both from the reference implementation).
BASE_SLICE_GAIN, BASE_SLICE_COLUMNS = 0.05, 8


class DeltaMemLayer(nn.Module, BaseTunerLayer):
    """Wraps an attention module: reads the memory before the module runs, and corrects its projections while it runs.

    The forward of the wrapped module is unchanged; hooks on its projections add the corrections. Attributes that this layer
    lacks are those of the wrapped module.

    Args:
        attention: the module to wrap.
        name: its name in the model, under which its state is kept.
        hook: the names of its projections.
        model_config: the configuration of the model's text decoder.

    Attributes:
        projections: the attention's projections by role: "q", "k", "v", "o"; without those that it takes from another layer.
        adapters: the weights of each adapter in this layer, by the adapter's name.
    """

    adapter_layer_names = ("delta_mem_in", "delta_mem_gate_bias", *(f"delta_mem_{role}" for role in ROLES))
    other_param_names = ("adapters",)

    def __init__(self, attention: nn.Module, name: str, hook: AttentionHook, model_config: Any) -> None:
        super().__init__()
        self.base_layer = attention
        self.name = name
        self.adapters: dict[str, LayerWeights] = {}
        # One projection of the hidden states per adapter, [read_rows + write_rows, width], see `MemoryKind`.
        self.delta_mem_in = nn.ModuleDict()
        # The biases of its rows that have one, [bias_rows].
        self.delta_mem_gate_bias = nn.ParameterDict()
        # The corrections: one map per role from the reads to the projection's output, [out_features, read_width].
        for role in ROLES:
            self.add_module(f"delta_mem_{role}", nn.ModuleDict())
        self._takes_keywords = hook.keywords
        # In a tuple, because a module as an attribute would have a second name in the model.
        self._norm = (hook.norm_before(attention),)
        self.projections = hook.projections(attention, model_config)
        self._width = width_in(hook.entrance(attention))
        self._handles: dict[str, RemovableHandle] = {}
        # torch.compile cannot trace a thread-local, so a plain attribute replaces it in compiled graphs.
        self.corrections: Correcting | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Private attributes are bookkeeping about the wrapped module (accelerate's hooks and the forward they replaced).
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(self.base_layer, name)

    def update_layer(self, adapter_name: str, config: DeltaMemConfig, inference_mode: bool = False) -> None:
        """Add an adapter's parameters to this layer."""
        kind = config.memory_kind
        roles = [role for role in config.corrections if role in self.projections]  # a layer may share another's keys and values
        self.delta_mem_in[adapter_name] = _linear_map(self._width, kind.read_rows + kind.write_rows)
        self.delta_mem_gate_bias[adapter_name] = nn.Parameter(torch.empty(kind.bias_rows, dtype=torch.float32, device="cpu"))
        for role in roles:
            self._linear(role)[adapter_name] = _linear_map(kind.read_width, self.projections[role].out_features)
        self.adapters[adapter_name] = weights = LayerWeights(
            name=adapter_name,
            config=config,
            kind=kind,
            scale=config.alpha / config.r,
            in_proj=self.delta_mem_in[adapter_name],
            gate_biases=self.delta_mem_gate_bias,
            corrections={role: self._linear(role)[adapter_name] for role in roles},
        )
        self._initialise(weights, inference_mode)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)
        for role in roles:  # last, because a refused adapter must not leave hooks behind
            if role not in self._handles:
                hooked = self.projections[role].module
                self._handles[role] = hooked.register_forward_hook(partial(self._correct, role))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped attention; in a memory pass, read and write its memory first."""
        memory: MemoryPass | None = kwargs.pop(PASS_KEYWORD, None) if self._takes_keywords else running.memory_pass
        attention: Any = self._modules["base_layer"]  # not self.base_layer: attribute look-ups slow down decoding
        if memory is None:
            return attention(*args, **kwargs)
        hidden = self.hidden_states(args, kwargs)  # [B, T, W]
        valid = memory.valid_for_gradients(hidden.device)
        if valid is not None:
            hidden = torch.where(valid[:, :, None], hidden, 0)  # [B, T, W]
            args, kwargs = _with_hidden(hidden, args, kwargs)
        corrections = memory.read_and_write(self, self.memory_input(hidden))
        if corrections is None:
            return attention(*args, **kwargs)
        # The hooks on the projections find the corrections here; other threads do not. A thread-local cannot be traced.
        place: Any = self if is_dynamo_compiling() else running
        outer, place.corrections = place.corrections, corrections
        try:
            return attention(*args, **kwargs)
        finally:
            place.corrections = outer

    def hidden_states(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden states among the arguments of a call, [batch, tokens, width]."""
        hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter((*args, *kwargs.values())))
        return hidden

    def memory_input(self, hidden: Tensor) -> Tensor:
        """The memory's input, [batch, tokens, width]: the hidden states, normalised if the attention module has the norm."""
        norm = self._norm[0]
        return hidden if norm is None else norm(hidden)

    def detach(self) -> nn.Module:
        """Remove the hooks and return the original attention module."""
        for handle in self._handles.values():
            handle.remove()
        return self.base_layer

    def adapter_weights(self, adapter: str) -> dict[str, Tensor]:
        """The parameters of one adapter in this layer."""
        weights = self.adapters[adapter]
        found = {"gate_bias": weights.gate_bias, "in": weights.in_weight}
        return found | {role: loaded_weight(linear, "weight") for role, linear in weights.corrections.items()}

    @property
    def active_weights(self) -> LayerWeights | None:
        """The active adapter's weights in this layer; None if it has none here, or is disabled."""
        active = () if self.disable_adapters else self.active_adapters
        return self.adapters.get(active[0]) if active else None

    @property
    def device(self) -> torch.device:
        """The device on which this layer runs; "meta" for a model without weights."""
        return device_of(*weight_of(self.projections["q"].module))

    @property
    def is_active(self) -> bool:
        """Whether an adapter is enabled in this layer."""
        return self.active_weights is not None

    def _linear(self, role: str) -> nn.ModuleDict:
        """The linear maps of all adapters for the correction of a role."""
        return getattr(self, f"delta_mem_{role}")

    def _correct(self, role: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of a projection: add the correction to its output [batch, tokens, out_features]."""
        corrections: Correcting | None = self.corrections if is_dynamo_compiling() else running.corrections
        return output if corrections is None else corrections.apply(self.name, role, self.projections[role], output)

    @torch.no_grad()
    def _initialise(self, weights: LayerWeights, inference_mode: bool) -> None:
        weights.kind.initialise(weights.in_weight, weights.gate_bias)
        for role, linear in weights.corrections.items():
            weight = loaded_weight(linear, "weight")
            if inference_mode:  # the weights will come from a file; if it is refused, zeros leave the model's outputs unchanged
                weight.zero_()
            else:
                self._initialise_correction(weight, self.projections[role], weights.config)

    def _initialise_correction(self, weight: Tensor, projection: Projection, config: DeltaMemConfig) -> None:
        if config.init == "random":
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            return
        weight.zero_()
        if config.init == "zero" or weight.is_meta:
            return
        source = loaded_weight(*weight_of(projection.module))
        if source.is_meta:
            return
        if not source.is_floating_point() or source.itemsize == 1:  # the scales of 8-bit floats are stored elsewhere
            raise ValueError(
                f"init='base_slice' copies columns of the frozen weights, but those of {self.name} are quantised "
                f"({source.dtype}); choose init='zero' or init='random'"
            )
        with gather_params_ctx(source):  # under DeepSpeed ZeRO-3, each process holds a part of the weight
            columns = min(BASE_SLICE_COLUMNS, config.r, source.shape[1])
            slice_ = F.normalize(projection.rows_of(source[:, :columns]).float(), dim=0)  # [out_features, columns]
        weight[:, :columns].copy_(BASE_SLICE_GAIN * slice_)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, None]:
        """The device of the adapter's weights; an attention module has no weight from which peft could tell it.

        The weights keep their dtype. The backbone's would round them on loading, and rounded weights would be another adapter,
        which does not accept the memories of this one.
        """
        return self.device, None


def _linear_map(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without a bias, always in float32, whatever the default dtype."""
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.float32, device="cpu")


def _with_hidden(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of an attention module, with the hidden states replaced."""
    if "hidden_states" in kwargs or not args:
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: hidden}
    return (hidden, *args[1:]), kwargs

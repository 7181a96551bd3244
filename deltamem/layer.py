"""DeltaMemLayer: one attention module with its memory's projections, gates and corrections."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
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
from deltamem.forward.corrections import Corrections
from deltamem.forward.decode import DecodeStep
from deltamem.forward.memory_pass import MemoryPass, TokenWrites
from deltamem.forward.running import running
from deltamem.hook import AttentionHook
from deltamem.hook.projection import Projection, width_in
from deltamem.rule import Gated, gated_delta_rule, gated_read, gated_write

# The keyword under which a pass travels from the top of the model to its attention modules.
PASS_KEYWORD = "delta_mem_pass"
# Share of a base-slice column's length that a correction starts with, and how many columns there are (the reference's).
BASE_SLICE_GAIN, BASE_SLICE_COLUMNS = 0.05, 8
LAMBDA_BIAS = 1.5


class DeltaMemLayer(nn.Module, BaseTunerLayer):
    """Wraps an attention module: reads the memory before it runs, and corrects its projections while it runs.

    The wrapped module's own forward is untouched; hooks on its projections add the corrections. Anything that is asked of this
    layer and that it does not have is answered by the wrapped module.

    Args:
        attention: the module to wrap.
        name: its name in the model, under which its state is kept.
        hook: which projections it has.
        model_config: the configuration of the model's text decoder.

    Attributes:
        projections: the attention's projections by role: "q", "k", "v", "o", those it has of its own.
        parts: what each adapter has here, by its name.
    """

    adapter_layer_names = (
        "delta_mem_in",
        "delta_mem_gate_bias",
        "delta_mem_q",
        "delta_mem_k",
        "delta_mem_v",
        "delta_mem_o",
    )
    other_param_names = ("parts",)

    def __init__(self, attention: nn.Module, name: str, hook: AttentionHook, model_config: Any) -> None:
        super().__init__()
        self.base_layer = attention
        self.name = name
        self.parts: dict[str, LayerWeights] = {}
        # One matrix for all that is computed from the hidden state: the rows that `Gating` describes.
        self.delta_mem_in = nn.ModuleDict()
        # Biases of β | λ.
        self.delta_mem_gate_bias = nn.ParameterDict()
        # The corrections' maps from the reads, [num_states * r] to the width of each projection's output.
        self.delta_mem_q = nn.ModuleDict()
        self.delta_mem_k = nn.ModuleDict()
        self.delta_mem_v = nn.ModuleDict()
        self.delta_mem_o = nn.ModuleDict()
        self._takes_keywords = hook.keywords
        # In a tuple, as a module's attribute would give it a second name in the model.
        self._norm = (hook.norm_before(attention),)
        self.projections = hook.projections(attention, model_config)
        self._width = width_in(hook.entrance(attention))
        self._handles: dict[str, RemovableHandle] = {}
        # While torch.compile traces, a plain attribute takes the thread-local's place, which it cannot trace.
        self._traced: Corrections | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # What is private is bookkeeping about the wrapped module (accelerate's hooks and the forward they replaced), not
            # about this one.
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(self.base_layer, name)

    def update_layer(self, adapter_name: str, config: DeltaMemConfig, inference_mode: bool = False) -> None:
        """Add an adapter's parameters to this layer."""
        gating = config.gating
        self.delta_mem_in[adapter_name] = _linear_map(self._width, gating.query_rows + gating.write_rows)
        self.delta_mem_gate_bias[adapter_name] = nn.Parameter(torch.empty(gating.bias_rows, dtype=torch.float32, device="cpu"))
        for role in self._corrected(config):
            out_features = self.projections[role].out_features
            self._linear(role)[adapter_name] = _linear_map(gating.query_rows, out_features)
        self.parts[adapter_name] = parts = LayerWeights(
            name=adapter_name,
            config=config,
            gating=gating,
            scale=config.alpha / config.r,
            entrance=self.delta_mem_in[adapter_name],
            gate_biases=self.delta_mem_gate_bias,
            corrections={role: self._linear(role)[adapter_name] for role in self._corrected(config)},
        )
        self._initialise(adapter_name, inference_mode)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)
        for role in parts.corrections:  # not before, or an adapter that is refused would leave hooks behind
            if role not in self._handles:
                hooked = self.projections[role].module
                self._handles[role] = hooked.register_forward_hook(partial(self._correct, role))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped attention; with a memory pass among the keywords, read and write its memory."""
        memory: MemoryPass | None = kwargs.pop(PASS_KEYWORD, None) if self._takes_keywords else running.memory_pass
        attention: Any = self._modules["base_layer"]  # not self.base_layer: every look-up tells while decoding
        if memory is None:
            return attention(*args, **kwargs)
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter((*args, *kwargs.values())))
        norm = self._norm[0]
        # Not where this is traced: of a model whose forward alone is compiled the pass began outside.
        token: DecodeStep | None = None if is_dynamo_compiling() else memory.one_token
        if token is not None and token.read_and_write(self.name, hidden if norm is None else norm(hidden)):
            outer, running.corrections = running.corrections, token  # what _attend does, without a call and another look-up
            try:
                return attention(*args, **kwargs)
            finally:
                running.corrections = outer
        if not self.is_active:
            return attention(*args, **kwargs)
        valid = memory.valid_for_gradients(hidden.device)
        if valid is not None:
            hidden = torch.where(valid[:, :, None], hidden, 0)
            args, kwargs = _with_hidden(hidden, args, kwargs)
        reads = self._read_and_write(memory, hidden if norm is None else norm(hidden), valid)
        return attention(*args, **kwargs) if reads is None else self._attend(reads, args, kwargs)

    def detach(self) -> nn.Module:
        """Take the hooks off again and return the attention module as it was."""
        for handle in self._handles.values():
            handle.remove()
        return self.base_layer

    def adapter_weights(self, adapter: str) -> dict[str, Tensor]:
        """The parameters of one adapter in this layer."""
        weights = {"gate_bias": self._gate_bias(adapter)}
        roles = ("in", *self.parts[adapter].corrections)
        return weights | {role: self._weight(role, adapter) for role in roles}

    def state_shape(self, batch: int) -> tuple[int, int, int, int] | None:
        """The shape of this layer's state under the active adapter, None if that has none here."""
        if self._active is None:
            return None
        config = self.parts[self._active].config
        return batch, config.num_states, config.r, config.r

    @property
    def device(self) -> torch.device:
        """Where this layer computes; "meta" for a model without weights."""
        return device_of(*weight_of(self.projections["q"].module))

    @property
    def is_active(self) -> bool:
        """Whether an adapter is at work here."""
        return self._active is not None

    @property
    def _active(self) -> str | None:
        active = () if self.disable_adapters else self.active_adapters
        return active[0] if active and active[0] in self.parts else None

    def _corrected(self, config: DeltaMemConfig) -> list[str]:
        """The projections that are corrected here: a layer may share the keys and values of another."""
        return [role for role in config.corrections if role in self.projections]

    def _linear(self, role: str) -> nn.ModuleDict:
        """The linear maps of all adapters for a role: "in", or a correction's."""
        return getattr(self, f"delta_mem_{role}")

    def _weight(self, role: str, adapter: str) -> Tensor:
        return loaded_weight(self._linear(role)[adapter], "weight")

    def _gate_bias(self, adapter: str) -> Tensor:
        return loaded_weight(self.delta_mem_gate_bias, adapter)

    def _attend(self, reads: Corrections, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the wrapped attention; the hooks on its projections see the reads meanwhile, and nobody else does."""
        place, name = (self, "_traced") if is_dynamo_compiling() else (running, "corrections")
        outer = getattr(place, name)
        setattr(place, name, reads)
        try:
            return self._modules["base_layer"](*args, **kwargs)  # type: ignore[misc]
        finally:
            setattr(place, name, outer)

    def _read_and_write(self, memory: MemoryPass, hidden: Tensor, valid: Tensor | None) -> Corrections | None:
        """Read the memory for every token and, if the pass writes, write it; None in a pass that does not read.

        Args:
            valid: see `Corrections`.
        """
        parts = self.parts[self.active_adapters[0]]
        with _without_autocast(hidden.device.type):
            values = self._each_token(parts, memory, hidden)
        if values is None:
            return None
        in_place = not (torch.compiler.is_compiling() or torch.is_grad_enabled())
        return Corrections(values, parts, in_place, valid)

    def _each_token(self, parts: LayerWeights, memory: MemoryPass, hidden: Tensor) -> Tensor | None:
        """See `_read_and_write`: the reads `[batch, tokens, num_states * r]`."""
        if memory.linked and not torch.is_grad_enabled():
            raise NotImplementedError(
                "reentrant activation checkpointing cuts the gradients between the passes of a memory; call "
                "torch.utils.checkpoint with use_reentrant=False"
            )
        if self.name in memory.end and not memory.over:
            raise NotImplementedError(
                f"{self.name} runs more than once in one pass, and a memory reads and writes every token once; δ-mem does not "
                "fit such a model"
            )
        config, gating = parts.config, parts.gating
        valid = None if memory.valid is None else memory.valid.to(hidden.device)
        start = memory.start.states.get(self.name)
        if start is None:
            shape = (hidden.shape[0], config.num_states, config.r, config.r)
            start = torch.zeros(shape, dtype=torch.float32, device=hidden.device)
        start = start.to(hidden.device)
        weight, bias = loaded_weight(parts.entrance, "weight"), self._gate_bias(parts.name)
        if memory.write and not config.writes_segments:
            run, rows = (gated_delta_rule, weight) if memory.read else (gated_write, weight[gating.query_rows :])
            projected = _project(hidden, rows)
            passed = run(projected, bias, start, valid, gating)
            memory.token_writes[self.name] = TokenWrites(projected[..., -gating.write_rows :], bias, valid, gating)
            self._report(memory, passed, valid, hidden.shape[1])
            return passed.reads if memory.read else None
        memory.end[self.name] = start
        reads = gated_read(_project(hidden, weight[: gating.query_rows]), start, valid, gating) if memory.read else None
        if memory.write and memory.segments is not None and memory.segments.count:
            present, sums = memory.segments.present.to(hidden.device), memory.segments.sums(hidden, self.name)
            projected = _project(memory.segments.means(sums), weight[gating.query_rows :])
            self._report(memory, gated_write(projected, bias, start, present, gating), present, memory.segments.count)
            left_open = memory.segments.open_sums(sums)
            if left_open is not None:
                memory.sums[self.name] = left_open
        return reads

    def _report(self, memory: MemoryPass, passed: Gated, valid: Tensor | None, tokens: int) -> None:
        """Tell the pass what this layer wrote."""
        memory.end[self.name] = passed.state
        if torch.is_grad_enabled():
            memory.write_gates[self.name] = passed.mean_gate(valid, tokens)

    def _correct(self, role: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of a projection: add the correction to its output `[batch, tokens, out_features]`."""
        reads: Corrections | DecodeStep | None = self._traced if is_dynamo_compiling() else running.corrections
        return output if reads is None else reads.apply(self.name, role, self.projections[role], output)

    @torch.no_grad()
    def _initialise(self, adapter: str, inference_mode: bool) -> None:
        config = self.parts[adapter].config
        weight, bias = self._weight("in", adapter), self.delta_mem_gate_bias[adapter]
        gating = self.parts[adapter].gating
        rows, gate_rows = gating.query_rows, config.num_states * gating.gate_rows
        for part in (weight[:rows], weight[rows : 2 * rows], weight[2 * rows : 3 * rows]):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        if config.tie_query_init:
            weight[:rows].copy_(weight[rows : 2 * rows])
        weight[3 * rows :].zero_()
        bias[:gate_rows].fill_(config.beta_bias)
        bias[gate_rows:].fill_(LAMBDA_BIAS)
        for role in self.parts[adapter].corrections:
            if inference_mode:  # its weights come from a file; if that is refused, the model is to be as it was
                self._weight(role, adapter).zero_()
            else:
                self._initialise_correction(self._weight(role, adapter), self.projections[role], config)

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
        if not source.is_floating_point() or source.itemsize == 1:  # 8-bit floats have scales elsewhere
            raise ValueError(
                f"init='base_slice' copies columns of the frozen weights, but those of {self.name} are quantised "
                f"({source.dtype}); choose init='zero' or init='random'"
            )
        with gather_params_ctx(source):  # ZeRO 3 of DeepSpeed leaves a process a part of it
            columns = min(BASE_SLICE_COLUMNS, config.r, source.shape[1])
            slice_ = F.normalize(projection.rows_of(source[:, :columns]).float(), dim=0)
        weight[:, :columns].copy_(BASE_SLICE_GAIN * slice_)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, None]:
        """Where the adapter's weights go: an attention module has no weight of its own for peft to look at.

        They keep their own dtype. The backbone's would round what is loaded, and a memory is refused by other weights than
        those that wrote it.
        """
        return self.device, None


def _linear_map(inputs: int, outputs: int) -> nn.Linear:
    """A map without a bias, float32 whatever the default dtype is."""
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.float32, device="cpu")


def _with_hidden(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an attention module, with other hidden states."""
    if "hidden_states" in kwargs or not args:
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: hidden}
    return (hidden, *args[1:]), kwargs


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Mixed precision would round gates and states, which are float32."""
    return torch.autocast(device, enabled=False) if device != "meta" and torch.is_autocast_enabled(device) else nullcontext()


def _project(hidden: Tensor, weight: Tensor) -> Tensor:
    """`hidden weight^T` in the weight's precision; float32 from here on, so that gates keep their smallest differences."""
    hidden = hidden if hidden.dtype == weight.dtype else hidden.to(weight.dtype)
    projected = F.linear(hidden, weight)
    return projected if projected.dtype == torch.float32 else projected.float()

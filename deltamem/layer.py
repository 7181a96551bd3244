"""DeltaMemLayer: one attention module with its memory's projections, gates and corrections."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, SequentialHook  # type: ignore[import-untyped]
from einops import rearrange
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltamem.config import DeltaMemConfig
from deltamem.current import current
from deltamem.hook import AttentionHook
from deltamem.passes import MemoryPass, TokenWrites
from deltamem.projection import Projection, width_in
from deltamem.rule import delta_rule, read

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
    """

    adapter_layer_names = (
        "delta_mem_in",
        "delta_mem_gate_bias",
        "delta_mem_q",
        "delta_mem_k",
        "delta_mem_v",
        "delta_mem_o",
    )
    other_param_names = ("configs",)

    def __init__(self, attention: nn.Module, name: str, hook: AttentionHook, model_config: Any) -> None:
        super().__init__()
        self.base_layer = attention
        self.name = name
        self.configs: dict[str, DeltaMemConfig] = {}
        # One matrix for all that is computed from the hidden state: rows q | k | v | β | λ (λ only if it is learned), each
        # `num_states * r` (gates: `num_states * gate_rows`) high.
        self.delta_mem_in = nn.ModuleDict()
        # Biases of β | λ.
        self.delta_mem_gate_bias = nn.ParameterDict()
        # The corrections' maps from the reads, [num_states * r] to the width of each projection's output.
        self.delta_mem_q = nn.ModuleDict()
        self.delta_mem_k = nn.ModuleDict()
        self.delta_mem_v = nn.ModuleDict()
        self.delta_mem_o = nn.ModuleDict()
        self._takes_keywords = hook.keywords
        self._projections = hook.projections(attention, model_config)
        self._width = width_in(hook.entrance(attention))
        self._handles: list[RemovableHandle] = []
        # While torch.compile traces, a plain attribute takes the thread-local's place, which it cannot trace.
        self._traced_reads: Tensor | None = None

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
        states, r, gate_rows = config.num_states, config.r, config.gate_rows
        gates = states * gate_rows * (2 if config.decay == "learned" else 1)
        self.configs[adapter_name] = config
        self.delta_mem_in[adapter_name] = nn.Linear(self._width, 3 * states * r + gates, bias=False)
        self.delta_mem_gate_bias[adapter_name] = nn.Parameter(torch.empty(gates))
        for role in self._corrected(config):
            out_features = self._projections[role].out_features
            self._linear(role)[adapter_name] = nn.Linear(states * r, out_features, bias=False)
        self._initialise(adapter_name, inference_mode)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)
        if not self._handles:  # not before, or an adapter that is refused would leave hooks behind
            self._handles = [
                projection.module.register_forward_hook(partial(self._correct, role))
                for role, projection in self._projections.items()
            ]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped attention; with a memory pass among the keywords, read and write its memory."""
        memory: MemoryPass | None = kwargs.pop(PASS_KEYWORD, None) if self._takes_keywords else current.memory
        adapter = self._active
        if memory is None or adapter is None:
            return self.base_layer(*args, **kwargs)
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        with self._exposed(self._read_and_write(adapter, memory, hidden)):
            return self.base_layer(*args, **kwargs)

    def detach(self) -> nn.Module:
        """Take the hooks off again and return the attention module as it was."""
        for handle in self._handles:
            handle.remove()
        return self.base_layer

    def adapter_weights(self, adapter: str) -> dict[str, Tensor]:
        """The parameters of one adapter in this layer."""
        weights = {"gate_bias": self._gate_bias(adapter)}
        roles = ("in", *self._corrected(self.configs[adapter]))
        return weights | {role: self._weight(role, adapter) for role in roles}

    def state_shape(self, batch: int) -> tuple[int, int, int, int] | None:
        """The shape of this layer's state under the active adapter, None if that has none here."""
        if self._active is None:
            return None
        config = self.configs[self._active]
        return batch, config.num_states, config.r, config.r

    @property
    def device(self) -> torch.device:
        """Where this layer computes; "meta" for a model without weights."""
        return _device(*_weight_of(self._projections["q"].module))

    @property
    def _active(self) -> str | None:
        if self.disable_adapters or not self.active_adapters or self.active_adapters[0] not in self.configs:
            return None
        return self.active_adapters[0]

    def _corrected(self, config: DeltaMemConfig) -> list[str]:
        """The projections that are corrected here: a layer may share the keys and values of another."""
        return [role for role in config.corrections if role in self._projections]

    def _linear(self, role: str) -> nn.ModuleDict:
        """The linear maps of all adapters for a role: "in", or a correction's."""
        return getattr(self, f"delta_mem_{role}")

    def _weight(self, role: str, adapter: str) -> Tensor:
        return _fetched(self._linear(role)[adapter], "weight")

    def _gate_bias(self, adapter: str) -> Tensor:
        return _fetched(self.delta_mem_gate_bias, adapter)

    def _read_and_write(self, adapter: str, memory: MemoryPass, hidden: Tensor) -> Tensor:
        """Read the memory for every token and, if the pass writes, write it: `[batch, tokens, num_states * r]`."""
        if memory.linked and not torch.is_grad_enabled():
            raise NotImplementedError(
                "reentrant activation checkpointing cuts the gradients between the passes of a memory; call "
                "torch.utils.checkpoint with use_reentrant=False"
            )
        config = self.configs[adapter]
        valid = None if memory.valid is None else memory.valid.to(hidden.device)
        if valid is not None:  # what stands in the padding must not reach anything, not even a gradient
            hidden = torch.where(valid[:, :, None], hidden, 0)
        start = memory.start.states.get(self.name)
        if start is None:
            start = torch.zeros(hidden.shape[0], config.num_states, config.r, config.r)
        start = start.to(hidden.device)

        query_rows = config.num_states * config.r
        weight = self._weight("in", adapter)
        end = start
        if memory.write and not config.writes_segments:
            queries, rest = _project(hidden, weight).tensor_split([query_rows], dim=-1)
            writes = self._token_writes(adapter, memory, rest, valid)
            reads, end = delta_rule(
                _unit(queries, config), writes.k, writes.v, writes.keep, writes.erase, writes.write, start, valid
            )
            memory.token_writes[self.name] = writes
        else:
            reads = read(_unit(_project(hidden, weight[:query_rows]), config), start, valid)
            if memory.write and memory.segments is not None and memory.segments.count:
                present = memory.segments.present.to(hidden.device)
                sums = memory.segments.sums(hidden, self.name)
                rest = _project(memory.segments.means(sums), weight[query_rows:])
                writes = self._token_writes(adapter, memory, rest, present)
                _, end = delta_rule(writes.k, writes.k, writes.v, writes.keep, writes.erase, writes.write, start, present)
                left_open = memory.segments.open_sums(sums)
                if left_open is not None:
                    memory.sums[self.name] = left_open
        memory.end[self.name] = end
        return rearrange(reads, "b n t r -> b t (n r)")

    def _token_writes(self, adapter: str, memory: MemoryPass, projected: Tensor, valid: Tensor | None) -> TokenWrites:
        """Keys, values and gates from their projections `[batch, tokens, rows k | v | β | λ]`."""
        config = self.configs[adapter]
        rows = config.num_states * config.r
        keys, values, logits = projected.tensor_split([rows, 2 * rows], dim=-1)
        gates = torch.sigmoid(logits + self._gate_bias(adapter).float())
        gates = rearrange(gates, "b t (kind n g) -> kind b n t g", n=config.num_states, g=config.gate_rows)
        if torch.is_grad_enabled():
            memory.write_gates[self.name] = _masked_mean(gates[0], valid)
        gates = gates.expand(*gates.shape[:-1], config.r)
        beta = gates[0]
        keep = {"coupled": 1 - beta, "learned": gates[-1], "none": torch.ones_like(beta)}[config.decay]
        erase = keep * beta if config.decay_first else beta
        writes = TokenWrites(_unit(keys, config), _by_state(values, config), keep, erase, beta)
        if valid is None:
            return writes
        # Padding becomes the rule's identity here already, so that replaying the writes needs no mask.
        real = valid[:, None, :, None]
        k, v, erase, beta = (torch.where(real, part, 0.0) for part in (writes.k, writes.v, erase, beta))
        return TokenWrites(k, v, torch.where(real, keep, 1.0), erase, beta)

    def _correct(self, role: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of a projection: add the correction to its output `[batch, tokens, out_features]`."""
        reads = self._traced_reads if torch.compiler.is_compiling() else current.reads
        adapter = self._active
        if reads is None or adapter is None or adapter not in self._linear(role):
            return output
        config = self.configs[adapter]
        correction = config.alpha / config.r * _project(reads, self._weight(role, adapter))
        return output + self._projections[role].place(correction).to(output.dtype)

    @contextmanager
    def _exposed(self, reads: Tensor) -> Iterator[None]:
        """Show the reads to the hooks on this module's projections while it runs, and to nobody else."""
        place, name = (self, "_traced_reads") if torch.compiler.is_compiling() else (current, "reads")
        outer = getattr(place, name)
        setattr(place, name, reads)
        try:
            yield
        finally:
            setattr(place, name, outer)

    @torch.no_grad()
    def _initialise(self, adapter: str, inference_mode: bool) -> None:
        config = self.configs[adapter]
        weight, bias = self._weight("in", adapter), self.delta_mem_gate_bias[adapter]
        rows, gate_rows = config.num_states * config.r, config.num_states * config.gate_rows
        for part in (weight[:rows], weight[rows : 2 * rows], weight[2 * rows : 3 * rows]):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        if config.tie_query_init:
            weight[:rows].copy_(weight[rows : 2 * rows])
        weight[3 * rows :].zero_()
        bias[:gate_rows].fill_(config.beta_bias)
        bias[gate_rows:].fill_(LAMBDA_BIAS)
        for role in self._corrected(config):
            if inference_mode:  # its weights come from a file; if that is refused, the model is to be as it was
                self._weight(role, adapter).zero_()
            else:
                self._initialise_correction(self._weight(role, adapter), self._projections[role], config)

    def _initialise_correction(self, weight: Tensor, projection: Projection, config: DeltaMemConfig) -> None:
        if config.init == "random":
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            return
        weight.zero_()
        if config.init == "zero" or weight.is_meta:
            return
        source = _fetched(*_weight_of(projection.module))
        if source.is_meta:
            return
        if not source.is_floating_point() or source.itemsize == 1:  # 8-bit floats have scales elsewhere
            raise ValueError(
                f"init='base_slice' copies columns of the frozen weights, but those of {self.name} are quantised "
                f"({source.dtype}); choose init='zero' or init='random'"
            )
        columns = min(BASE_SLICE_COLUMNS, config.r, source.shape[1])
        slice_ = F.normalize(projection.rows_of(source[:, :columns]).float(), dim=0)
        weight[:, :columns].copy_(BASE_SLICE_GAIN * slice_)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, None]:
        """Where the adapter's weights go: an attention module has no weight of its own for peft to look at.

        They keep their own dtype. The backbone's would round what is loaded, and a memory is refused by other weights than
        those that wrote it.
        """
        return self.device, None


def _project(hidden: Tensor, weight: Tensor) -> Tensor:
    """`hidden weight^T` in the weight's precision; float32 from here on, so that gates keep their smallest differences."""
    return F.linear(hidden.to(weight.dtype), weight).float()


def _by_state(projected: Tensor, config: DeltaMemConfig) -> Tensor:
    return rearrange(projected, "b t (n r) -> b n t r", n=config.num_states)


def _unit(projected: Tensor, config: DeltaMemConfig) -> Tensor:
    """Queries or keys `[batch, num_states, tokens, r]` of unit length, from their projection."""
    return F.normalize(_by_state(torch.tanh(projected), config), dim=-1, eps=1e-6)


def _masked_mean(gates: Tensor, valid: Tensor | None) -> Tensor:
    """The mean of gates `[batch, num_states, tokens, rows]` over the valid tokens `[batch, tokens]`."""
    if valid is None:
        return gates.mean()
    weight = valid[:, None, :, None].expand_as(gates).to(gates.dtype)
    return (gates * weight).sum() / weight.sum().clamp(min=1)


def _weight_of(projection: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the weight of a projection, which another peft method may have wrapped, and the weight's name."""
    while isinstance(inner := getattr(projection, "base_layer", None), nn.Module):
        projection = inner
    tensors = [name for name, _ in (*projection.named_parameters(), *projection.named_buffers())]
    return projection, next((name for name in ("weight", "qweight") if name in tensors), tensors[0])


def _device(module: nn.Module, name: str) -> torch.device:
    """Where a module's tensor is when the module runs."""
    hook = _offload_hook(module)
    return torch.device(getattr(module, name).device if hook is None else hook.execution_device)


def _fetched(module: nn.Module, name: str) -> Tensor:
    """A module's tensor; if accelerate has moved it out, to the disk or another device, a copy of it from there."""
    tensor = getattr(module, name)
    hook = _offload_hook(module)
    return tensor if hook is None or not tensor.is_meta else hook.weights_map[name].to(hook.execution_device)


def _offload_hook(module: nn.Module) -> AlignDevicesHook | None:
    """The hook with which accelerate keeps a module's weights elsewhere while it does not run, if any."""
    hook = getattr(module, "_hf_hook", None)
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return next((hook for hook in hooks if isinstance(hook, AlignDevicesHook) and hook.offload), None)

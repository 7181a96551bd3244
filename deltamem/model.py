"""DeltaMemModel: the PEFT tuner. Attaches the layers and carries the memory through every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import _get_submodules
from torch import Tensor, nn

from deltamem.adapter.checks import check_fits, check_weight_shapes, shape_of_weight
from deltamem.adapter.embeddings import embeddings_in
from deltamem.adapter.fingerprint import fingerprint_of
from deltamem.config import DeltaMemConfig
from deltamem.forward.decode_weights import DecodeWeights
from deltamem.forward.model_hooks import ModelHooks
from deltamem.forward.scope import MemoryScope, ScopeGuard
from deltamem.forward.sharding import is_sharded
from deltamem.forward.unsupported import check_call
from deltamem.hook import AttentionHook
from deltamem.hook.backbone_identity import backbone_identity, check_backbone
from deltamem.hook.registered import attention_modules, hook_for
from deltamem.hook.text_decoder import text_config
from deltamem.layer import DeltaMemLayer
from deltamem.memory.segments import whole_numbers
from deltamem.memory.snapshot import OPEN_SUMS, Snapshot, state_shapes
from deltamem.memory.soundness import check_fits_adapter
from deltamem.memory.state import DeltaMemState
from deltamem.versions import names_in_model


class DeltaMemModel(BaseTuner):
    """A frozen model with a δ-mem memory in its attention layers; made by `get_peft_model(model, DeltaMemConfig(...))`.

    A plain call starts from an empty memory and leaves nothing behind. `with model.memory(state):` reads and writes `state`.
    """

    prefix = "delta_mem_"
    tuner_layer_cls = DeltaMemLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (peft's signature): the registry has the targets

    _layers: dict[str, DeltaMemLayer]
    # The model's attention hook, and its original attention modules by name.
    _hook: AttentionHook
    _attention: dict[str, nn.Module]
    # The open scopes of all threads and tasks, newest last; see MemoryScope.find.
    open_scopes: list[MemoryScope]
    _decode_weights: DecodeWeights | None
    # For adapters that were cast to another dtype: from the fingerprint after the cast to that before it.
    _cast_from: dict[str, str]
    # By adapter, while `weights_held`; None otherwise.
    _held_fingerprints: dict[str, str] | None

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        shared = getattr(model, "peft_config", {})
        before = dict(shared)
        try:
            super().__init__(model, *args, **kwargs)
            # Hook the inner model, not the PeftModel of another method around it, which generate() bypasses.
            while isinstance(model, PeftModel):
                model = model.get_base_model()
            self._model_hooks = ModelHooks(self, model)
        except BaseException:  # peft adds a refused adapter to the model's list
            shared.clear()
            shared.update(before)
            raise

    def __getstate__(self) -> dict[str, Any]:
        """The content of a copy or a pickle of the model: everything but the open memories."""
        return {**vars(self), "open_scopes": [], "_decode_weights": None, "_held_fingerprints": None}

    @classmethod
    def of(cls, model: nn.Module) -> DeltaMemModel:
        """Find the tuner of a model into which transformers loaded an adapter without a PeftModel.

        `AutoModelForCausalLM.from_pretrained(ADAPTER)`, `model.load_adapter(ADAPTER)` and `pipeline(model=ADAPTER)` attach an
        adapter directly. Such a model runs like a PeftModel, but has no `new_memory` and no `memory`. The result has both, and
        can be used in place of a PeftModel, for instance in a ChatSession.

        Args:
            model: such a model, or a PeftModel.

        Raises:
            ValueError: no δ-mem adapter is attached to the model.
        """
        hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
        attached = [hooks for hooks in (getattr(hook, "__self__", None) for hook in hooks) if isinstance(hooks, ModelHooks)]
        found = [hooks.owner for hooks in attached if isinstance(hooks.owner, cls)]
        if not found:
            raise ValueError(f"this {type(model).__name__} has no δ-mem adapter; load one, or attach one with get_peft_model")
        return found[0]

    # ----------------------------------------------------------------------------------------------------- the memory

    def new_memory(self, batch_size: int = 1) -> DeltaMemState:
        """An empty memory for the active adapter.

        Args:
            batch_size: number of rows; each is an independent memory.

        Raises:
            ValueError: `batch_size` is not a positive integer, or no adapter is active.
        """
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} is not accepted; give a whole number of at least 1")
        layers = self._layers_in_use()
        device = next(iter(layers.values())).device
        parts = self.active_peft_config.memory_kind.state_parts
        return DeltaMemState(Snapshot.zeros(tuple(layers), parts, batch_size, device))

    def memory(
        self,
        state: DeltaMemState,
        write: bool = True,
        read: bool = True,
        segment_ids: Tensor | None = None,
        keep_open: bool = False,
        detach: bool = True,
    ) -> AbstractContextManager[MemoryScope]:
        """Let the passes in a `with` block read and write a memory.

        The block applies to this model, and only in this thread or task. If it ends in an error, the state is as it was before.
        In a generation with several branches per row (beams, returned sequences), every branch starts from its row's memory.
        The state then holds the memory after the prompt; the writes of the branches are dropped.

        Args:
            state: the memory, with one row per row of the batch.
            write: False to read only; the state then does not change.
            read: False to write only: the model's output is that of the bare backbone, and the memory is written from its
                hidden states.
            segment_ids: `[batch, tokens]`, the segment of each token of the pass, -1 for tokens that are not written. Required
                to write, and only accepted, for adapters that write messages or sentences (SSW).
            keep_open: leave the last segment of each row open, to be continued in a later pass. It is not written yet; the
                memory keeps its sum so far. A later pass with the same id continues it; a pass with another id, or without
                `keep_open`, completes it.
            detach: False keeps the autograd graph of the writes, to train through the memory.

        Raises:
            ValueError: the state belongs to another adapter or model, this adapter does not write segments, or the memory would
                be neither read nor written.
        """
        if not (read or write):
            raise ValueError("read=False and write=False leave the memory out; for that, use model.disable_adapter()")
        self._check_state(state)
        config = self.active_peft_config
        if (segment_ids is not None or keep_open) and not config.writes_segments:
            given = "segment_ids are" if segment_ids is not None else "keep_open is"
            raise ValueError(f"{given} for adapters that write segments; this one has write={config.write!r}")
        ids = None if segment_ids is None else whole_numbers(segment_ids)
        return ScopeGuard(MemoryScope(self, self.active_adapters[0], state, write, read, ids, keep_open, detach))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> DeltaMemModel:
        """See `nn.Module._apply`. A cast to another dtype rounds the weights, but does not change the adapter's fingerprint."""
        layers = self._active_layers()
        weights = [weight for layer in layers.values() for weight in layer.adapter_weights(self.active_adapters[0]).values()]
        if not weights or weights[0].is_meta or is_sharded(self.model):
            return super()._apply(fn, recurse)
        before, dtype = self.fingerprint(), weights[0].dtype
        super()._apply(fn, recurse)
        if next(iter(layers.values())).adapter_weights(self.active_adapters[0])["gate_bias"].dtype != dtype:
            self._cast_from[self.fingerprint()] = before
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, with the hooks on it, which peft 0.20 and older leave out."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's `generate`; the memory is expanded for beams and returned sequences like the prompt."""
        return self.model.generate(*args, **kwargs)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's `generate_batch` if no adapter is active: continuous batching puts several users into one row.

        Raises:
            NotImplementedError: an adapter is active.
        """
        # Check here: transformers runs it in a thread, so an error in a pass would only be logged.
        if self._active_layers():
            check_call(self.model, {"cache": "continuous batching"})
        return self.model.generate_batch(*args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """See `generate_batch`."""
        if self._active_layers():
            check_call(self.model, {"cache": "continuous batching"})
        return self.model.init_continuous_batching(*args, **kwargs)

    def fingerprint(self) -> str:
        """A hash that identifies the active adapter: its options, its weights and the kind of its backbone.

        Every call hashes the weights, because changes cannot be detected reliably: fused optimizers and writes to `weight.data`
        do not increment the version counter. `weights_held` spares that.
        """
        adapter, held = self.active_adapters[0], self._held_fingerprints
        if held is not None and adapter in held:
            return held[adapter]
        weights = {
            f"{name}.{key}": weight
            for name, layer in self._active_layers().items()
            for key, weight in layer.adapter_weights(adapter).items()
        }
        found = fingerprint_of(self.active_peft_config, weights)
        found = self._cast_from.get(found, found)
        if held is not None:
            held[adapter] = found
        return found

    @contextmanager
    def weights_held(self) -> Iterator[None]:
        """Hash each adapter at most once within the block, in all threads: the caller keeps the weights as they are."""
        before = self._held_fingerprints
        self._held_fingerprints = {} if before is None else before
        try:
            yield
        finally:
            self._held_fingerprints = before

    # -------------------------------------------------------------------------------------------- checks and look-ups

    @property
    def hands_keywords_down(self) -> bool:
        """Whether the model hands its keyword arguments, and with them the pass, down to its attention modules."""
        return self._hook.keywords

    @property
    def has_active_layers(self) -> bool:
        """Whether the active adapter is enabled in at least one layer."""
        return any(layer.is_active for layer in self._layers.values())

    def _active_layers(self) -> dict[str, DeltaMemLayer]:
        """The layers in which the active adapter is enabled, by name."""
        return {name: layer for name, layer in self._layers.items() if layer.is_active}

    def decode_weights(self, device: torch.device, start: Snapshot) -> DecodeWeights:
        """The active adapter's weights in all of its layers, for a decode step.

        Args:
            device: the device of the hidden states.
            start: the memory from which the step starts.
        """
        adapter = self.active_adapters[0]
        if self._decode_weights is None or not self._decode_weights.still_valid(adapter, device, start):
            self._decode_weights = DecodeWeights(
                {name: layer.adapters for name, layer in self._layers.items()}, adapter, device
            )
        return self._decode_weights

    def _layers_in_use(self) -> dict[str, DeltaMemLayer]:
        """The active layers, of which there must be at least one.

        Raises:
            ValueError: no adapter is active.
        """
        layers = self._active_layers()
        if not layers:
            raise ValueError(
                "no δ-mem adapter is active; call model.set_adapter(NAME), leave disable_adapter(), or attach one (again)"
            )
        return layers

    @property
    def active_peft_config(self) -> DeltaMemConfig:
        """The active adapter's configuration; the name is the same as in a PeftModel."""
        return self.peft_config[self.active_adapters[0]]

    def check_reached(self, reached: Collection[str]) -> None:
        """Check that a pass has run through all layers with the active adapter.

        Raises:
            RuntimeError: the pass did not reach some of them.
        """
        if len(reached) == len(self._layers):
            return
        missing = [name for name in self._active_layers() if name not in reached]
        if missing:
            raise RuntimeError(
                f"the memory did not reach {len(missing)} of {len(self._active_layers())} attention modules, such as "
                f"{missing[0]}: {type(self.model).__name__} does not run them, or does not hand keyword arguments down to "
                "them. In the latter case, use register_hook(model_type, AttentionHook(..., keywords=False))"
            )

    def _check_state(self, state: DeltaMemState) -> None:
        if not isinstance(state, DeltaMemState):
            raise TypeError(f"a memory must be a DeltaMemState, got {type(state).__name__}; make one with model.new_memory()")
        layers = self._layers_in_use()
        expected = state_shapes(layers, self.active_peft_config.memory_kind.state_parts, state.batch_size)
        if state.snapshot.open_segment is not None and self.active_peft_config.writes_segments:
            widths = {name: layer.adapter_weights(self.active_adapters[0])["in"].shape[1] for name, layer in layers.items()}
            expected |= {OPEN_SUMS + name: (state.batch_size, width) for name, width in widths.items()}
        check_fits_adapter(state.snapshot, expected, self.active_adapters[0])
        if state.fingerprint is not None and not self.model.training and state.fingerprint != self.fingerprint():
            raise ValueError(
                f"this memory was written by the adapter {state.fingerprint}, but {self.active_adapters[0]!r} is "
                f"{self.fingerprint()}: its numbers mean nothing to other weights. Load the adapter that wrote it, or start "
                "with model.new_memory()"
            )

    # --------------------------------------------------------------------------------------------- what peft asks for

    def _pre_injection_hook(self, model: nn.Module, config: DeltaMemConfig, adapter_name: str) -> None:
        layers = [module for module in model.modules() if isinstance(module, DeltaMemLayer)]
        if any(layer.adapters for layer in layers):
            raise ValueError(
                "this backbone has δ-mem layers already: those of another PeftModel, of transformers' own load_adapter, or of "
                "a load that was refused. Add adapters to that PeftModel (load_adapter, add_adapter), call its unload(), take "
                "the adapter off with model.delete_adapter(NAME), or load the backbone again"
            )
        if layers:  # empty layers, which delete_adapter leaves behind with the last adapter
            self.of(model)._take_off_layers()
        self._layers, self._decode_weights, self._cast_from, self._held_fingerprints = {}, None, {}, None
        self.open_scopes = []
        self._hook = hook_for(model)
        self._attention = attention_modules(model, self._hook)

    def _prepare_adapter_config(self, peft_config: DeltaMemConfig, model_config: dict[str, Any]) -> DeltaMemConfig:
        backbone = backbone_identity(self.model)
        if peft_config.backbone is not None:
            check_backbone(peft_config.backbone, backbone)
        config = text_config(self.model)
        projections = {name: self._hook.projections(module, config) for name, module in self._attention.items()}
        check_fits(peft_config, backbone["hidden_size"], backbone["num_hidden_layers"], projections)
        peft_config.backbone = peft_config.backbone or backbone
        if peft_config.target_modules is None:
            peft_config.target_modules = {self._hook.suffix(name) for name in self._attention}
        return peft_config

    def _check_target_module_exists(self, peft_config: DeltaMemConfig, key: str) -> Any:
        """Accept only modules that the hook found: a vision tower's attention may have the same name."""
        return key in self._attention and super()._check_target_module_exists(peft_config, key)

    def _create_and_replace(
        self,
        peft_config: DeltaMemConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if not isinstance(layer, DeltaMemLayer):
            layer = DeltaMemLayer(target, current_key, self._hook, text_config(self.model))
        layer.update_layer(adapter_name, peft_config, inference_mode=peft_config.inference_mode)
        if layer is not target:
            self._layers[current_key] = layer
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Set the active adapter. There can be only one, because a model has one memory at a time.

        Raises:
            ValueError: more than one name was given.
        """
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise ValueError(
                f"δ-mem can have one active adapter, got {len(adapter_name)}: {', '.join(adapter_name)}. A memory belongs to "
                "the adapter that writes it; activate one"
            )
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            "δ-mem cannot be merged into the backbone: its corrections depend on the memory, not on weights alone. Use "
            "unload() to get the plain backbone back, or keep the adapter attached"
        )

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        self._take_off_layers()
        # Another method that was attached before shares this dictionary.
        for name in [name for name, config in self.peft_config.items() if isinstance(config, DeltaMemConfig)]:
            del self.peft_config[name]
        if not self.peft_config and "peft_config" in vars(self.model):
            del self.model.peft_config
            self.model._hf_peft_config_loaded = False  # transformers' record of it
        return self.model

    def _take_off_layers(self) -> None:
        """Remove the hooks and restore the model's attention modules."""
        self._model_hooks.remove()
        for name, layer in self._layers.items():
            parent, _, target_name = _get_submodules(self.model, name)
            self._replace_module(parent, target_name, layer.detach(), layer)
        self._layers = {}

    def enable_adapter_layers(self) -> None:
        """Enable the memory's layers only: peft's method would include those of every other method in the model."""
        for layer in self._layers.values():
            layer.enable_adapters(True)

    def disable_adapter_layers(self) -> None:
        """See `enable_adapter_layers`."""
        for layer in self._layers.values():
            layer.enable_adapters(False)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: DeltaMemConfig, adapter_name: str, state_dict: dict[str, Tensor], **_: Any
    ) -> dict[str, Tensor]:
        """The weights of the memory, without those of another method's adapter of the same name.

        They are selected by name: peft's method looks up the modules, and finds none in layers that FSDP wrapped for
        checkpointing.
        """
        return {name: weight for name, weight in state_dict.items() if f".{cls.prefix}" in name}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: DeltaMemConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Map saved names to the model's. Refuses weights that are not exactly the adapter's, before any is loaded.

        peft only warns of missing weights, would load a weight of the backbone if the file had one, and casts any dtype.

        Raises:
            ValueError: weights are missing or unknown, have other shapes, or are not finite floating-point numbers.
        """
        refused = f"these weights are not those of the adapter {adapter_name!r}"
        embeddings, loaded = embeddings_in(state_dict, model)
        own = {name: weight for name, weight in state_dict.items() if name not in embeddings}
        remapped = names_in_model(cls.prefix, model, config, adapter_name, own)
        expected = {
            name: tuple(tensor.shape)
            for name, tensor in model.state_dict().items()
            if name.partition(f".{cls.prefix}")[2].split(".")[1:2] == [adapter_name]
        }
        # If the adapter is injected into a bare transformers model, the saved names have a prefix that the model's lack.
        given = {
            name if name in expected else name.removeprefix("base_model.model."): shape_of_weight(name, weight)
            for name, weight in remapped.items()
        }
        if len(given) < len(own):
            raise ValueError(f"{refused}: {len(own)} names in the file stand for {len(given)}; save it again")
        check_weight_shapes(adapter_name, given, expected)
        return {**remapped, **loaded}

"""Statistics of a memory in training: how far its gates open, and the norms of its states and corrections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltamem.forward.running import pass_in, running
from deltamem.hook.text_decoder import last_place
from deltamem.layer import DeltaMemLayer
from deltamem.training.loss import EpisodeLoss, views_in

Measured = dict[str, list[Tensor]]


@torch.no_grad()
def memory_statistics(loss: EpisodeLoss, batch: Mapping[str, Any]) -> dict[str, float]:
    """Measure one batch of episodes by writing and reading it once more.

    Args:
        loss: runs the episodes through the model.
        batch: made by an `EpisodeCollator`; only the first view's reads are measured.

    Returns:
        `write_gate` (mean β) and `keep_gate` (mean of what a write keeps: λ, or 1 - β) over tokens and layers, for adapters
        that write tokens; `state_norm`, the mean Frobenius norm of a state; and, for each corrected projection, such as
        `correction_ratio_q`, the norm of the corrections relative to that of the projection's output (with everything packed
        with it).
    """
    model = loss.adapted
    layers = [module for module in model.modules() if isinstance(module, DeltaMemLayer) and module.is_active]
    measured: Measured = defaultdict(list)
    with _hooks(_gate_hook(layer, measured) for layer in layers):
        written = loss.write(model, batch)
    read = batch[next(iter(views_in(batch)))]
    state = written.memory(read["chat"], read["written"])
    measured["state_norm"] += [tensor.norm(dim=(-2, -1)).mean() for tensor in state.tensors.values()]
    real = read["attention_mask"].bool()
    corrected = (_correction_hook(layer, role, real, measured) for layer in layers for role in layer.projections)
    with model.memory(state, write=False), _hooks(corrected):
        ids = read["input_ids"]
        model(input_ids=ids, attention_mask=read["attention_mask"], use_cache=False, logits_to_keep=last_place(ids))
    return {name: torch.stack([value.float().cpu() for value in values]).mean().item() for name, values in measured.items()}


@contextmanager
def _hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


def _gate_hook(layer: DeltaMemLayer, measured: Measured) -> RemovableHandle:
    """Measure the gates of a layer's writes in a pass."""

    def measure(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        memory = pass_in(kwargs)
        written = None if memory is None else memory.token_writes.get(layer.name)
        if written is None:  # the adapter writes segments
            return
        for name, gates in written.kind.mean_gates(written.projected, written.bias).items():
            measured[f"{name}_gate"].append((gates if written.valid is None else gates[written.valid]).mean())

    return layer.register_forward_hook(measure, with_kwargs=True)


def _correction_hook(layer: DeltaMemLayer, role: str, real: Tensor, measured: Measured) -> RemovableHandle:
    """Measure a projection's correction at the tokens `real`, `[batch, tokens]`, before it is applied."""
    projection = layer.projections[role]

    def measure(module: nn.Module, args: Any, output: Tensor) -> None:
        corrections, weights = running.corrections, layer.active_weights
        if corrections is None or weights is None or role not in weights.corrections:
            return
        corrected = corrections.apply(layer.name, role, projection, output.clone())
        measured[f"correction_ratio_{role}"].append((corrected - output)[real].norm() / output[real].norm())

    return projection.module.register_forward_hook(measure, prepend=True)

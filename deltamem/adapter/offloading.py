"""Finds a module's tensors, in the module or offloaded by accelerate."""

from __future__ import annotations

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook  # type: ignore[import-untyped]
from torch import Tensor, nn


def weight_of(projection: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds a projection's weight, and the weight's name. Another peft method may wrap the projection."""
    while isinstance(inner := getattr(projection, "base_layer", None), nn.Module):
        projection = inner
    tensors = [name for name, _ in (*projection.named_parameters(), *projection.named_buffers())]
    return projection, next((name for name in ("weight", "qweight") if name in tensors), tensors[0])


def device_of(module: nn.Module, name: str) -> torch.device:
    """The device of a module's tensor while the module runs."""
    hook = _offload_hook(module)
    return torch.device(getattr(module, name).device if hook is None else hook.execution_device)


def loaded_weight(module: nn.Module, name: str) -> Tensor:
    """A module's tensor. If accelerate has offloaded it to the disk or another device, load a copy."""
    tensor = getattr(module, name)
    hook = _offload_hook(module)
    return tensor if hook is None or not tensor.is_meta else hook.weights_map[name].to(hook.execution_device)


def _offload_hook(module: nn.Module) -> AlignDevicesHook | None:
    """The hook with which accelerate offloads a module's weights while it does not run, if any."""
    hook = vars(module).get("_hf_hook")  # not getattr: a failing look-up on a module is slow
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return next((hook for hook in hooks if isinstance(hook, AlignDevicesHook) and hook.offload), None)

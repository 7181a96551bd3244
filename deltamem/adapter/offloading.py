"""Where a module's tensors are: in the module, or offloaded by accelerate."""

from __future__ import annotations

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook  # type: ignore[import-untyped]
from torch import Tensor, nn


def weight_of(projection: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the weight of a projection, which another peft method may have wrapped, and the weight's name."""
    while isinstance(inner := getattr(projection, "base_layer", None), nn.Module):
        projection = inner
    tensors = [name for name, _ in (*projection.named_parameters(), *projection.named_buffers())]
    return projection, next((name for name in ("weight", "qweight") if name in tensors), tensors[0])


def device_of(module: nn.Module, name: str) -> torch.device:
    """Where a module's tensor is when the module runs."""
    hook = _offload_hook(module)
    return torch.device(getattr(module, name).device if hook is None else hook.execution_device)


def loaded_weight(module: nn.Module, name: str) -> Tensor:
    """A module's tensor; if accelerate has moved it out, to the disk or another device, a copy of it from there."""
    tensor = getattr(module, name)
    hook = _offload_hook(module)
    return tensor if hook is None or not tensor.is_meta else hook.weights_map[name].to(hook.execution_device)


def _offload_hook(module: nn.Module) -> AlignDevicesHook | None:
    """The hook with which accelerate keeps a module's weights elsewhere while it does not run, if any."""
    hook = vars(module).get("_hf_hook")  # where it is; to look for what is not there takes a module long
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return next((hook for hook in hooks if isinstance(hook, AlignDevicesHook) and hook.offload), None)

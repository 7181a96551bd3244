"""The fingerprint of an adapter: what the numbers of its memories depend on, as a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from deltamem.config import MEMORY_OPTIONS, DeltaMemConfig
from deltamem.hook.backbone_identity import IDENTITY_FIELDS


def fingerprint_of(config: DeltaMemConfig, weights: Mapping[str, Tensor]) -> str:
    """A hash over what a memory's numbers depend on."""
    options = {name: getattr(config, name) for name in MEMORY_OPTIONS}
    if config.kind != "delta":  # whose memories were saved before there were others
        options["kind"] = config.kind
    options |= {name: (config.backbone or {}).get(name) for name in IDENTITY_FIELDS}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if not weight.is_meta:
            # A copy: the memory that NumPy shares can no longer be freed, as FSDP does between passes.
            values = whole(weight.detach()).to("cpu", torch.float32, copy=True).contiguous()
            digest.update(values.numpy().data)
    return digest.hexdigest()[:16]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is split over processes, put together again; all of them have to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

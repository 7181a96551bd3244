"""The fingerprint of an adapter: a hash of everything that determines the numbers in its memories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from deltamem.config import MEMORY_OPTIONS, DeltaMemConfig
from deltamem.hook.backbone_identity import IDENTITY_FIELDS


def fingerprint_of(config: DeltaMemConfig, weights: Mapping[str, Tensor]) -> str:
    """Hash the options, the kind of backbone and the weights that determine the numbers in a memory."""
    options = {name: getattr(config, name) for name in MEMORY_OPTIONS}
    if config.kind != "delta":  # keep the fingerprints from before there were other kinds
        options["kind"] = config.kind
    options |= {name: (config.backbone or {}).get(name) for name in IDENTITY_FIELDS}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if not weight.is_meta:
            # Copy the weight: FSDP frees weights between passes, but cannot free storage that NumPy shares.
            values = whole(weight.detach()).to("cpu", torch.float32, copy=True).contiguous()
            digest.update(values.numpy().data)
    return digest.hexdigest()[:16]


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that is sharded over processes; all processes must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

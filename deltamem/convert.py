"""Adapters of the authors' research code, turned into PEFT adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltamem.config import DeltaMemConfig

# What an option of the reference must say where this library has no counterpart: its off position. Options that only matter
# once one of these is on, or only for new weights, are not looked at.
OFF: dict[str, Any] = {
    "normalize_qk": True,
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "slot_read_top_k": 0,
    "memory_reader_layers": [],
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "latent_memory_layers": [],
    "target_modules": ["self_attn"],
    "delta_o_rmsnorm": False,
    "trainable_delta_scale": False,
    "delta_scale_init": 1.0,
    "delta_scale_parameterization": "alpha_over_rank",
}
WRITES = {"token": "token", "message_mean": "message", "sentence_mean": "sentence"}
# The reference's update modes, as (decays, decays before the error is measured).
UPDATE_MODES = {"standard": (True, False), "lambda_outside": (True, True), "no_lambda": (False, False)}


def from_reference(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[DeltaMemConfig, dict[str, Tensor]]:
    """Convert an adapter of the reference implementation (`declare-lab/delta-Mem`).

    Args:
        config: its `delta_mem_config.json`, under the reference's option names.
        tensors: its weights under the reference's names, `model.layers.0.self_attn.memory_q_proj` and so on.

    Returns:
        The config for `get_peft_model`, and the weights for `peft.set_peft_model_state_dict`.

    Raises:
        ValueError: an option that this library does not have, named, or weights that the options do not call for.
    """
    ours = _config(config)
    modules = sorted({name.rpartition(".")[0] for name in tensors})
    state_dict: dict[str, Tensor] = {}
    used: set[str] = set()
    for module in modules:
        for key, sources in _sources(ours).items():
            names = [f"{module}.{source}" for source in sources]
            missing = [name for name in names if name not in tensors]
            if missing:
                raise ValueError(f"the reference adapter lacks {missing[0]!r}, which its options call for")
            used.update(names)
            state_dict[f"base_model.model.{module}.{key}"] = torch.cat([tensors[name] for name in names])
        # The reference also saves what is switched off: maps of corrections, and the gate of a decay that is not there.
        used.update(f"{module}.delta_{role}_proj" for role in "qkvo" if role not in ours.corrections)
        if ours.decay == "none":
            used.update(f"{module}.lambda_{part}" for part in ("proj", "bias"))
    unknown = sorted({*tensors} - used)
    if unknown:
        raise ValueError(f"the reference adapter has {unknown[0]!r}, for which its options have no use")
    return ours, state_dict


def _config(config: Mapping[str, Any]) -> DeltaMemConfig:
    missing = [option for option in ("rank", "alpha", "delta_heads") if option not in config]
    if missing:
        raise ValueError(f"the reference's config lacks the option {missing[0]!r}")
    for option, off in OFF.items():
        if config.get(option, off) != off:
            raise ValueError(f"the reference's option {option}={config[option]!r} has no counterpart here; only {off!r} has")
    decays, decay_first = _translate(config, "state_update_mode", UPDATE_MODES, "standard")
    return DeltaMemConfig(
        task_type="CAUSAL_LM",
        r=config["rank"],
        alpha=config["alpha"],
        corrections=tuple(config["delta_heads"]),
        write=_translate(config, "memory_write_granularity", WRITES, "token"),
        num_states=config.get("num_state_heads", 1),
        decay="none" if not decays else "coupled" if config.get("couple_lambda", True) else "learned",
        decay_first=decay_first,
        rowwise_gates=config.get("rankwise_gates", True),
        beta_bias=config.get("beta_bias_init", -1.5),
        layers_to_transform=list(config.get("target_layers", [])) or None,
    )


def _translate(config: Mapping[str, Any], option: str, names: Mapping[str, Any], default: str) -> Any:
    value = config.get(option, default)
    if value not in names:
        raise ValueError(f"the reference's option {option}={value!r} has no counterpart here; known: {', '.join(names)}")
    return names[value]


def _sources(config: DeltaMemConfig) -> dict[str, list[str]]:
    """Our parameters of one attention module, each with the reference's that are stacked into it."""
    gates = ["beta", "lambda"] if config.decay == "learned" else ["beta"]
    rows = ["memory_q_proj", "memory_k_proj", "memory_v_proj", *(f"{gate}_proj" for gate in gates)]
    sources = {"delta_mem_in.weight": rows, "delta_mem_gate_bias": [f"{gate}_bias" for gate in gates]}
    return sources | {f"delta_mem_{role}.weight": [f"delta_{role}_proj"] for role in config.corrections}

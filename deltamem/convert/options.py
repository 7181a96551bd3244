"""Translates the options of a reference adapter, which have other names, from and to ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltamem.config import DeltaMemConfig

REQUIRED = ("rank", "alpha", "delta_heads")
# Options without a counterpart in this library, with the value that turns them off, which they must have.
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
# Options that only matter if one of the above is on, or only for new weights.
WITHOUT_EFFECT = {
    "output_init",
    "base_slice_ref_width",
    "online_gain",
    "memory_partition_routing",
    "memory_partition_basis",
    "tie_memory_partition_read_write",
    "memory_partition_read_mode",
    "memory_partition_sigmoid_gate_bias_init",
    "global_memory_mode",
    "global_memory_read_top_k",
    "global_memory_merge_mode",
    "global_memory_gate_bias_init",
    "global_memory_read_logit_bias",
    "memory_reader_hidden_size",
    "memory_reader_residual_scale",
    "memory_reader_read_only",
    "memory_write_proposals_per_message",
    "synthetic_memory_slots",
    "latent_memory_hidden_size",
    "latent_memory_residual_scale",
    "latent_memory_slots",
    "latent_memory_init_std",
    "latent_gate_init",
    "delta_o_rmsnorm_eps",
    "delta_scale_max",
    "delta_scale_granularity",
}
WRITES = {"token": "token", "message_mean": "message", "sentence_mean": "sentence"}
# The reference's update modes, as (decays, decays before the error is measured).
UPDATE_MODES = {"standard": (True, False), "lambda_outside": (True, True), "no_lambda": (False, False)}
TRANSLATED = {
    *REQUIRED,
    "beta_bias_init",
    "couple_lambda",
    "state_update_mode",
    "rankwise_gates",
    "num_state_heads",
    "memory_write_granularity",
    "target_layers",
}


def options_from_reference(config: Mapping[str, Any]) -> DeltaMemConfig:
    """Translate the options of a reference adapter into our config.

    Raises:
        ValueError: an option is missing, has no counterpart in this library, or has a value that is not accepted; the message
            names it.
    """
    missing = [option for option in REQUIRED if option not in config]
    if missing:
        raise ValueError(f"the reference's config lacks the option {missing[0]!r}")
    unknown = sorted({*config} - TRANSLATED - {*OFF} - WITHOUT_EFFECT)
    if unknown:
        raise ValueError(
            f"the option {unknown[0]}={config[unknown[0]]!r:.80} is not one of the reference's; it may change what the weights "
            "mean, so it is not passed over"
        )
    for option, off in OFF.items():
        if _listed(config.get(option, off)) != off:
            raise ValueError(f"the reference's option {option}={config[option]!r} has no counterpart here; only {off!r} has")
    decays, decay_first = _translate(config, "state_update_mode", UPDATE_MODES, "standard")
    coupled = _translate(config, "couple_lambda", {True: True, False: False}, True)
    return DeltaMemConfig(
        task_type="CAUSAL_LM",
        r=config["rank"],
        alpha=config["alpha"],
        corrections=tuple(_list(config, "delta_heads")),
        write=_translate(config, "memory_write_granularity", WRITES, "token"),
        num_states=config.get("num_state_heads", 1),
        decay="none" if not decays else "coupled" if coupled else "learned",
        decay_first=decay_first,
        rowwise_gates=config.get("rankwise_gates", True),
        beta_bias=config.get("beta_bias_init", -1.5),
        layers_to_transform=_list(config, "target_layers") or None,
    )


def options_to_reference(config: DeltaMemConfig) -> dict[str, Any]:
    """Translate our config into the reference's options, leaving out those of chat sessions and of new weights.

    Raises:
        ValueError: an option has no counterpart in the reference; the message names it.
    """
    targets = sorted(config.target_modules or OFF["target_modules"])
    if targets != OFF["target_modules"]:
        raise ValueError(
            f"target_modules={targets!r} has no counterpart in the reference, where all attention is called 'self_attn'; it "
            "chooses layers by their index, as layers_to_transform does"
        )
    layers = config.layers_to_transform
    return {
        "rank": config.r,
        "alpha": config.alpha,
        "delta_heads": list(config.corrections),
        "memory_write_granularity": _name_of(config.write, WRITES),
        "num_state_heads": config.num_states,
        "state_update_mode": _name_of((config.decay != "none", config.decay_first), UPDATE_MODES),
        "couple_lambda": config.decay != "learned",
        "rankwise_gates": config.rowwise_gates,
        "beta_bias_init": config.beta_bias,
        "target_layers": [layers] if isinstance(layers, int) else list(layers or ()),
        **OFF,
    }


def _listed(value: Any) -> Any:
    """Convert a tuple to a list, as JSON does."""
    return list(value) if isinstance(value, tuple) else value


def _list(config: Mapping[str, Any], option: str) -> list[Any]:
    value = _listed(config.get(option, []))
    if not isinstance(value, list):
        raise ValueError(f"the reference's option {option}={value!r:.80} is not accepted; it is a list")
    return value


def _translate(config: Mapping[str, Any], option: str, names: Mapping[Any, Any], default: Any) -> Any:
    value = config.get(option, default)
    if value not in [*names]:  # in a list, since values from JSON may not be hashable
        known = ", ".join(map(str, names))
        raise ValueError(f"the reference's option {option}={value!r} has no counterpart here; known: {known}")
    return names[value]


def _name_of(value: Any, names: Mapping[str, Any]) -> str:
    return next(name for name, meaning in names.items() if meaning == value)

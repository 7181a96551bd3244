"""Checks the configuration of an engine with memories, and completes it, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from deltamem.vllm.options import MemoryOptions
from deltamem_vllm import PREFIX

logger = logging.getLogger(__name__)

CONNECTOR, CONNECTOR_MODULE = "MemoryConnector", "deltamem.vllm.connector"
SCHEDULER = "deltamem.vllm.scheduler.MemoryScheduler"
REQUEST_CHECKS = "deltamem.vllm.request_check:"


def configure(config: Any, config_hooks: Mapping[str, Any]) -> None:
    """Check a `VllmConfig` for a model with memories, and add what memories need to it.

    Args:
        config: the configuration.
        config_hooks: vLLM's checks of the architectures, of which that of the model without memories also runs.

    Raises:
        ValueError: an option excludes memories; the message says why.
    """
    MemoryOptions.from_config(config.additional_config)
    for given, reason in _refused(config):
        if given:
            raise ValueError(f"a model with memories does not run with {reason}")
    plain = config_hooks.get(config.model_config.architecture.removeprefix(PREFIX))
    if plain is not None:
        plain.verify_and_update_config(config)
    if config.cache_config.enable_prefix_caching:
        logger.info("prefix caching is off: keys and values depend on what a request's memory holds, not on its tokens alone")
    config.cache_config.enable_prefix_caching = False
    config.scheduler_config.async_scheduling = False
    config.scheduler_config.scheduler_cls = SCHEDULER
    config.model_config.enforce_eager = True
    _add_connector(config)
    check = REQUEST_CHECKS + ("RequestCheck" if config.use_v2_model_runner else "FirstRequestCheck")
    config.model_config.logits_processors = [*(config.model_config.logits_processors or ()), check]


def _refused(config: Any) -> tuple[tuple[bool, str], ...]:
    """Whether an option is given, and what is said of it then."""
    parallel = config.parallel_config
    return (
        (
            config.speculative_config is not None,
            "speculative decoding, because a rejected token would have been written already; leave speculative_config out",
        ),
        (config.lora_config is not None, "LoRA adapters, which replace the projections it corrects; leave enable_lora out"),
        (
            parallel.pipeline_parallel_size > 1,
            "pipeline parallelism, because one process must hold the states of all layers; use tensor_parallel_size",
        ),
        (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
            "context parallelism, because a memory reads a text from its beginning to its end; use tensor_parallel_size",
        ),
        (parallel.use_ubatching, "overlapping micro-batches; leave enable_dbo out"),
        (
            config.kv_transfer_config is not None and config.kv_transfer_config.kv_connector != CONNECTOR,
            "another KV connector, because memories are handed over by their own; leave kv_transfer_config out",
        ),
        (
            config.scheduler_config.scheduler_cls not in (None, SCHEDULER),
            "another scheduler, because memories are written by their own; leave scheduler_cls out",
        ),
    )


def _add_connector(config: Any) -> None:
    from vllm.config import KVTransferConfig

    config.kv_transfer_config = KVTransferConfig(
        kv_connector=CONNECTOR, kv_connector_module_path=CONNECTOR_MODULE, kv_role="kv_both"
    )

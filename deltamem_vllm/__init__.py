"""The plug-in that vLLM loads, in all of its processes: names the model architectures that have a memory.

It imports nothing of deltamem, and changes nothing of vLLM's own architectures. A user chooses one with a memory by its name,
which is vLLM's with a prefix; `deltamem.vllm.engine_options` does so.
"""

from __future__ import annotations

from typing import Any

PREFIX = "DeltaMem"
# vLLM's architectures that were tried with a memory, or that run the same attention code as one that was.
ARCHITECTURES = (
    "Gemma3ForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "Ministral3ForCausalLM",
    "MistralForCausalLM",
    "Olmo2ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)


def register() -> None:
    """Add the architectures with a memory to vLLM's, by name: they are imported when one is used."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class MemoryConfig(VerifyAndUpdateConfig):
        """Checks an engine's configuration, and completes it."""

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            from deltamem.vllm.configure import configure

            configure(vllm_config, MODELS_CONFIG_MAP)

    for architecture in ARCHITECTURES:
        name = PREFIX + architecture
        ModelRegistry.register_model(name, f"deltamem.vllm.models:{name}")
        MODELS_CONFIG_MAP[name] = MemoryConfig

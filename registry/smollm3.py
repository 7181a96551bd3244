"""SmolLM3: Llama's attention, without rotary embeddings in every fourth layer."""

from deltamem.hook import AttentionHook

HOOKS = {"smollm3": AttentionHook()}

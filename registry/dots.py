"""dots.llm1: Llama's attention with norms on queries and keys."""

from deltamem.hook import AttentionHook

HOOKS = {"dots1": AttentionHook()}

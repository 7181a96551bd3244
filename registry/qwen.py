"""Qwen 2 and 3. Qwen 3 normalises queries and keys per head, after the projections and so after the corrections."""

from deltamem.hook import AttentionHook

HOOKS = {"qwen2": AttentionHook(), "qwen3": AttentionHook()}

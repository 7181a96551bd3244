"""Cohere's Command and Aya: attention and feed-forward in parallel; from Command R7B on, most layers use a sliding window."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("cohere", "cohere2", "cohere2_moe", "cohere_compass_text"), AttentionHook())

"""Cohere's Command and Aya: attention and feed-forward network side by side; most layers slide from Command R7B on."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("cohere", "cohere2", "cohere2_moe", "cohere_compass_text"), AttentionHook())

"""Aria's text decoder: Llama's attention in a mixture of experts."""

from deltamem.hook import AttentionHook

HOOKS = {"aria_text": AttentionHook()}

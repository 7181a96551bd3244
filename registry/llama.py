"""Llama: separate projections without norms on queries and keys."""

from deltamem.hook import AttentionHook

HOOKS = {"llama": AttentionHook()}

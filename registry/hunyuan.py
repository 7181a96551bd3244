"""Hunyuan: Llama's attention with norms on queries and keys after the rotary embedding."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe"), AttentionHook())

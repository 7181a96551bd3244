"""MiMo: Llama's attention with values narrower than keys; the number of key heads differs between layers."""

from deltamem.hook import AttentionHook

HOOKS = {"mimo_v2_flash": AttentionHook()}

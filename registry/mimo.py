"""MiMo: Llama's attention with values narrower than keys; the numbers of key heads differ between the layers."""

from deltamem.hook import AttentionHook

HOOKS = {"mimo_v2_flash": AttentionHook()}

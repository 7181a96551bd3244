"""BitNet: Llama's attention with a norm before the output projection."""

from deltamem.hook import AttentionHook

HOOKS = {"bitnet": AttentionHook()}

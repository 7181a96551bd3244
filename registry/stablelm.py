"""StableLM: Llama's attention; some models normalise queries and keys per head after the projections."""

from deltamem.hook import AttentionHook

HOOKS = {"stablelm": AttentionHook(keywords=False)}

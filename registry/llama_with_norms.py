"""Llama's attention with norms on queries and keys per head, from vendors without another family.

NanoChat normalises after the rotary embedding, the others before it; both come after the corrections.
"""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("apertus", "flint", "hy_v3", "kolibri1", "mellum", "nanochat"), AttentionHook())

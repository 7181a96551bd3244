"""ZAYA: a convolution mixes queries and keys after the projections, and so after the corrections.

Values come from two projections, of the current and of the previous token, so they are not corrected.
"""

from deltamem.hook import AttentionHook

HOOKS = {"zaya": AttentionHook(q="qkv_proj.q_proj", k="qkv_proj.k_proj", v=None)}

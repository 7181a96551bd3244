"""ZAYA: queries and keys are mixed by a convolution after the projections, and so after the corrections.

Values come from two projections, of the token and of the one before it, so they are not corrected.
"""

from deltamem.hook import AttentionHook

HOOKS = {"zaya": AttentionHook(q="qkv_proj.q_proj", k="qkv_proj.k_proj", v=None)}

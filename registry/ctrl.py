"""CTRL: separate projections; the attention module receives the same hidden states three times."""

from deltamem.hook import AttentionHook

HOOKS = {"ctrl": AttentionHook("multi_head_attention", q="Wq", k="Wk", v="Wv", o="dense")}

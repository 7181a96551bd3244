"""ModernBERT's decoder: separate projections; most layers use a sliding window."""

from deltamem.hook import AttentionHook

HOOKS = {"modernbert-decoder": AttentionHook("attn", o="Wo")}

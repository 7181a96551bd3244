"""ModernBERT's decoder: separate projections, most layers slide."""

from deltamem.hook import AttentionHook

HOOKS = {"modernbert-decoder": AttentionHook("attn", o="Wo")}

"""OLMo: OLMo 2 and OLMoE normalise all queries and all keys after the projections; OLMo 3 slides in most layers."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("flex_olmo", "olmo", "olmo2", "olmo3", "olmoe"), AttentionHook())

"""OLMo: OLMo 2 and OLMoE normalise projected queries and keys over all heads; OLMo 3 has sliding windows in most layers."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("flex_olmo", "olmo", "olmo2", "olmo3", "olmoe"), AttentionHook())

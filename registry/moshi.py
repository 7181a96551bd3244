"""Moshi: Llama's attention, with each projection wrapped in its own module."""

from deltamem.hook import AttentionHook

HOOKS = {"moshi": AttentionHook(q="q_proj.linear", k="k_proj.linear", v="v_proj.linear", o="o_proj.linear")}

"""Moshi: Llama's attention, each projection inside a module of its own."""

from deltamem.hook import AttentionHook

HOOKS = {"moshi": AttentionHook(q="q_proj.linear", k="k_proj.linear", v="v_proj.linear", o="o_proj.linear")}

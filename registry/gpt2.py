"""GPT and GPT-2: queries, keys and values concatenated in one projection, whose weights are transposed."""

from dataclasses import replace

from deltamem.hook import AttentionHook

GPT2 = AttentionHook("attn", q="c_attn", k="c_attn", v="c_attn", o="c_proj", packing={"c_attn": "q k v"})

HOOKS = {"gpt2": GPT2, "gpt-sw3": GPT2, "openai-gpt": replace(GPT2, keywords=False)}

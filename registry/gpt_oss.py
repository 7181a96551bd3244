"""GPT-OSS: each head has a learned sink beside the keys; every other layer uses a sliding window."""

from deltamem.hook import AttentionHook

HOOKS = {"gpt_oss": AttentionHook()}

"""OPT, BioGPT and XGLM: separate projections, named as in BART."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("biogpt", "opt", "xglm"), AttentionHook(o="out_proj"))

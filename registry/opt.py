"""OPT, BioGPT and XGLM: separate projections, BART's names."""

from deltamem.hook import AttentionHook

HOOKS = dict.fromkeys(("biogpt", "opt", "xglm"), AttentionHook(o="out_proj"))

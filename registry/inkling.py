"""Inkling: separate projections; keys and values then pass through a short convolution, and so after the corrections."""

from deltamem.hook import AttentionHook

HOOKS = {
    "inkling_text": AttentionHook(),
    # transformers 5.24 puts each linear map into a module with what follows it.
    "inkling2_text": AttentionHook(
        q=("q_proj.linear", "q_proj"),
        k=("k_proj.linear", "k_proj"),
        v=("v_proj.linear", "v_proj"),
        o=("o_proj.linear", "o_proj"),
    ),
}

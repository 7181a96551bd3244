"""GPT-Neo and GPT-J: separate projections. CodeGen: GPT-J's packed into one, in four groups, values before keys."""

from deltamem.hook import AttentionHook

HOOKS = {
    "gpt_neo": AttentionHook("attention", o="out_proj", keywords=False),
    "gptj": AttentionHook("attn", o="out_proj", keywords=False),
    "codegen": AttentionHook(
        "attn",
        q="qkv_proj",
        k="qkv_proj",
        v="qkv_proj",
        o="out_proj",
        packing={"qkv_proj": "4 x (q v k)"},
        keywords=False,
    ),
}

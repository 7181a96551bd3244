"""BERT and its descendants with a causal head. They attend in both directions unless they are decoders.

The projections are in submodules, the residual connection is inside the attention, and some have a norm before all of it.
"""

from dataclasses import replace

from deltamem.hook import AttentionHook, Unsupported

BERT = AttentionHook("attention", q="self.query", k="self.key", v="self.value", o="output.dense", requires={"is_decoder": True})

HOOKS = {
    **dict.fromkeys(
        (
            "bert",
            "bert-generation",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "roberta",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xmod",
        ),
        BERT,
    ),
    "big_bird": replace(BERT, requires={"is_decoder": True, "attention_type": "original_full"}),
    "git": Unsupported("it puts an image's features before the text, where no attention mask separates the two"),
    "megatron-bert": replace(BERT, norm="ln", keywords=False),
    "reformer": Unsupported("its layers are reversible and recomputed for the gradients, without the memory"),
    "rembert": replace(BERT, keywords=False),
    "roberta-prelayernorm": replace(BERT, norm="LayerNorm"),
    "xlm-roberta-xl": replace(BERT, norm="self_attn_layer_norm"),
}
